"""Runs whose checkpoints live on a real S3 server: cut off, gone on with, recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parts import equal, tiny, untimed

from distsparse.config import RunConfig
from distsparse.core import load_network
from distsparse.launch import run
from distsparse.launch.record import checkpoints_of, trial_folder
from distsparse.results import read_trial
from distsparse.train import storage


def outcome(root: Path, config: RunConfig) -> dict[str, Any]:
    (row,) = read_trial(root, study=config.study, trial=config.key) or [{}]
    assert row["status"] == "completed", row["error"]
    with storage.reading(row["checkpoint"]) as folder:
        weights, masks = load_network(folder)
    rows = read_trial(root, study=config.study, trial=config.key, table="rewires") or []
    return {"row": row, "weights": weights, "masks": masks, "rewires": untimed(rows)}


def failing(bucket: str | None, **values: Any) -> RunConfig:
    """Fails in its 17th step, and has checkpoints of the steps 5, 10 and 15."""
    model = {"name": "parts:failing", "at": 17, "how": values.pop("how", "raise")}
    return tiny(
        {"model": model, "optimizer.momentum": 0.9, "checkpoint.every_steps": 5, "checkpoint.storage": bucket}
        | values
    )


def test_goes_on_bit_for_bit_from_s3(bucket: str, tmp_path: Path) -> None:
    expected_root, root = tmp_path / "disk", tmp_path / "s3"
    whole = failing(None, how="never")
    run(whole, expected_root)

    config = failing(bucket)
    row = run(config, root)
    assert row["status"] == "failed"
    assert "planted at call 17" in row["error"]
    place = checkpoints_of(root, config)
    assert place == bucket.replace("/runs?", f"/runs/default/{config.key}?")
    assert [storage.name_of(saved) for saved in storage.folders(place)] == [
        "step-0000000010",
        "step-0000000015",
    ]

    # A new process has made fewer than 17 steps when the run is over.
    run(config, root, resume=True)
    expected, found = outcome(expected_root, whole), outcome(root, config)
    assert equal(found["weights"], expected["weights"])
    assert equal(found["masks"], expected["masks"])
    assert [row | {"trial": ""} for row in found["rewires"]] == [
        row | {"trial": ""} for row in expected["rewires"]
    ]
    assert found["row"]["checkpoint"] == storage.join(place, "step-0000000024")
    assert storage.folders(place) == [found["row"]["checkpoint"]]
    assert not trial_folder(root, config).exists(), "nothing but rows is below the results"


def test_latency_of_a_network_on_s3(bucket: str, tmp_path: Path) -> None:
    row = run(tiny({"checkpoint.storage": bucket, "latency.measure": True}), tmp_path)
    assert row["latency_ms"] > 0


def test_begins_anew_without_resume(bucket: str, tmp_path: Path) -> None:
    config = failing(bucket)
    run(config, tmp_path)
    row = run(config, tmp_path)
    assert row["status"] == "failed", "it would complete from the checkpoint of step 15"


def test_bucket_that_is_not_there_is_known_before_anything_starts(bucket: str, tmp_path: Path) -> None:
    config = tiny({"checkpoint.storage": bucket.replace("s3://", "s3://absent-")})
    with pytest.raises(ValueError, match=r"^checkpoint\.storage = 's3://absent-.*cannot be written to"):
        run(config, tmp_path)
    assert not (tmp_path / "default" / "trials").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_go_on_from_s3(bucket: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    whole = failing(None, how="never", **{"launch.workers": 2})
    run(whole, tmp_path / "disk")
    config = failing(bucket, how="kill", **{"launch.workers": 2, "launch.max_failures": 1})
    row = run(config, tmp_path)
    assert row["status"] == "completed", row["error"]
    expected, found = outcome(tmp_path / "disk", whole), outcome(tmp_path, config)
    assert equal(found["weights"], expected["weights"])
    assert equal(found["masks"], expected["masks"])
    assert storage.folders(checkpoints_of(tmp_path, config)) == [found["row"]["checkpoint"]]
    assert found["row"]["checkpoint"].startswith(bucket.partition("?")[0])
