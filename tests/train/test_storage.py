"""Checkpoints on a disk and on a real S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from distsparse.train import LocalReporter, storage


def test_names_of_places(tmp_path: Path) -> None:
    assert storage.join(tmp_path, "a", "b") == str(tmp_path / "a" / "b")
    assert storage.join("s3://bucket", "a") == "s3://bucket/a"
    place = storage.join("s3://bucket/runs/?region=eu-west-1&scheme=http", "a", "b")
    assert place == "s3://bucket/runs/a/b?region=eu-west-1&scheme=http"
    assert storage.name_of(place) == storage.name_of("x/b") == "b"
    assert storage.parent(place) == "s3://bucket/runs/a?region=eu-west-1&scheme=http"
    assert storage.parent("x/b") == "x"


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "runs")
    place: str = request.getfixturevalue("bucket")
    return place


def write(place: str, text: str) -> None:
    with storage.writing(place) as folder:
        (folder / "state.json").write_text(text)
        (folder / "network.safetensors").write_bytes(b"\0\1" * 100_000)


def text_of(place: str) -> str:
    with storage.reading(place) as folder:
        assert (folder / "network.safetensors").read_bytes() == b"\0\1" * 100_000
        return (folder / "state.json").read_text()


def test_what_is_written_is_read(place: str) -> None:
    assert storage.folders(place) == []
    storage.check_storage(place)
    assert storage.folders(place) == []
    for name in ("b", "a"):
        write(storage.join(place, name), name)
    assert storage.folders(place) == [storage.join(place, "a"), storage.join(place, "b")]
    assert [text_of(found) for found in storage.folders(place)] == ["a", "b"]
    write(storage.join(place, "a"), "again")
    assert text_of(storage.join(place, "a")) == "again"
    storage.remove(storage.join(place, "a"))
    storage.remove(storage.join(place, "a"))
    assert storage.folders(place) == [storage.join(place, "b")]


def fail(folder: Path) -> None:
    (folder / "network.safetensors").write_text("half")
    raise ArithmeticError("planted")


def test_what_fails_leaves_nothing(place: str) -> None:
    reporter = LocalReporter(place, keep=1)
    with pytest.raises(ArithmeticError):
        reporter.report({}, step=3, save=fail)
    assert reporter.saved() == storage.folders(place) == []


def test_reporter_keeps_the_newest(place: str) -> None:
    reporter = LocalReporter(place, keep=2)
    for step in (8, 999, 1000):
        reporter.report({}, step=step, save=lambda folder: fill(folder))
    assert [storage.name_of(saved) for saved in reporter.saved()] == ["step-0000000999", "step-0000001000"]
    with LocalReporter(place, keep=2).checkpoints()[0] as folder:
        assert (folder / "state.json").read_text() == "{}"


def fill(folder: Path) -> None:
    (folder / "state.json").write_text("{}")


def test_place_that_cannot_be_written_to(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "file").write_text("")
    for place in (
        str(tmp_path / "file" / "below"),
        bucket.replace("s3://", "s3://absent-"),
        "nowhere://bucket/runs",
    ):
        with pytest.raises(ValueError, match=r"^checkpoint\.storage = .*: cannot be written to: [^\n]+$"):
            storage.check_storage(place)
