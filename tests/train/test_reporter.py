from __future__ import annotations

from pathlib import Path

import pytest

from distsparse.train import LocalReporter


def write(folder: Path) -> None:
    (folder / "state.json").write_text(folder.name)


def names(reporter: LocalReporter) -> list[str]:
    return [Path(folder).name for folder in reporter.saved()]


def test_keeps_the_newest(tmp_path: Path) -> None:
    reporter = LocalReporter(tmp_path / "run", keep=2)
    assert reporter.saved() == []
    assert reporter.checkpoints() == []
    # By step, not by name: 1000 is after 999.
    for step in (8, 999, 1000):
        reporter.report({}, step=step, save=write)
    assert names(reporter) == ["step-0000000999", "step-0000001000"]
    found = []
    for saved in reporter.checkpoints():
        with saved as folder:
            found.append(folder.name)
    assert found == ["step-0000001000", "step-0000000999"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names(reporter)


def test_report_without_checkpoint_writes_nothing(tmp_path: Path) -> None:
    LocalReporter(tmp_path / "run", keep=1).report({"accuracy": 1.0}, step=1)
    assert not (tmp_path / "run").exists()


def test_failed_save_leaves_the_last_one(tmp_path: Path) -> None:
    reporter = LocalReporter(tmp_path, keep=1)
    reporter.report({}, step=1, save=write)

    def fail(folder: Path) -> None:
        write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        reporter.report({}, step=2, save=fail)
    assert names(reporter) == ["step-0000000001"]


def test_finds_what_an_earlier_process_saved_and_clears_what_it_left_unfinished(tmp_path: Path) -> None:
    LocalReporter(tmp_path, keep=1).report({}, step=5, save=write)
    (tmp_path / ".step-0000000006.abc.tmp").mkdir()
    assert names(LocalReporter(tmp_path, keep=1)) == ["step-0000000005"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000005"]


def test_finish_keeps_the_last_one(tmp_path: Path) -> None:
    reporter = LocalReporter(tmp_path, keep=3)
    for step in (1, 2, 3):
        reporter.report({}, step=step, save=write)
    reporter.finish()
    assert names(reporter) == ["step-0000000003"]


def test_half_written_checkpoint_is_not_one(tmp_path: Path) -> None:
    reporter = LocalReporter(tmp_path, keep=2)
    reporter.report({}, step=1, save=write)
    (tmp_path / ".step-0000000002.abc.tmp").mkdir()  # as a killed process leaves it
    assert names(reporter) == ["step-0000000001"]


def test_one_process() -> None:
    reporter = LocalReporter(Path("unused"), keep=1)
    assert (reporter.rank, reporter.world_size) == (0, 1)
