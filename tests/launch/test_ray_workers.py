"""Ray Train workers: the same masks as one process, a divergence that is found, a driver that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from parts import TINY, equal, tiny, untimed
from torch import Tensor

from distsparse.config import RunConfig, override
from distsparse.core import load_network
from distsparse.launch import run_local
from distsparse.launch.record import trial_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DIGITS = {
    "model": {"name": "mlp", "hidden": [40]},
    "data": {"name": "digits"},
    "method": {"name": "rigl", "delta_T": 10, "sparsity": 0.9},
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
    "train": {"epochs": 12, "batch_size": 50, "log_every": 25},
    "checkpoint": {"every_steps": 25},
    "latency": {"measure": False},
    "launch": {"num_threads": 1},
}


def start(config: RunConfig, folder: Path, *options: str) -> subprocess.Popen[str]:
    (folder / "run.yaml").write_text(json.dumps(config.to_dict()))
    return subprocess.Popen(
        [sys.executable, "-m", "distsparse", "train", "run.yaml", "--output", "out", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def trial(folder: Path) -> pd.Series[Any]:
    return pd.read_parquet(folder / "out" / "default" / "trials").iloc[0]


def network(row: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return load_network(Path(row["checkpoint"]))


def agreement(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Share of positions in which two topologies are the same."""
    same = sum(int((first[name] == second[name]).sum()) for name in first)
    return same / sum(mask.numel() for mask in first.values())


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    frame = pd.read_parquet(folder / "out" / "default" / name)
    rows: list[dict[str, Any]] = frame.drop(columns=["trial"]).to_dict("records")
    return untimed(rows)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on two workers by the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(override(DIGITS, {}), folder, "--workers", "2")
    output, error = process.communicate(timeout=200)
    assert process.returncode == 0, output + error
    assert error == ""
    return folder, output


def test_two_workers_from_the_command_line(undisturbed: tuple[Path, str]) -> None:
    folder, output = undisturbed
    row = trial(folder)
    assert (row["status"], row["world_size"], row["launch.workers"]) == ("completed", 2, 2)
    assert row["steps"] == 12 * 28
    assert row["accuracy"] > 0.9
    assert row["ray_version"]
    assert list(pd.read_parquet(folder / "out" / "default" / "steps")["step"])[-1] == 336
    assert "\r" not in output
    assert "epoch 12/12" in output
    assert "accuracy" in output.splitlines()[-3]


def test_same_masks_as_one_process(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = undisturbed
    row = trial(folder)
    alone = run_local(override(DIGITS, {}), tmp_path, verbose=False)
    (weights, masks), (other_weights, other_masks) = network(row), network(alone)
    assert row["num_updates"] == alone["num_updates"] == 25
    assert agreement(masks, other_masks) >= 0.999
    assert row["training_flops"] == pytest.approx(alone["training_flops"])
    for name, weight in weights.items():
        assert torch.allclose(weight, other_weights[name], atol=1e-2)
    assert [row["step"] for row in table(folder, "rewires")] == [
        entry["step"] for entry in pd.read_parquet(tmp_path / "default" / "rewires").to_dict("records")
    ]


def kill_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_driver_resumes_bit_for_bit(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    config = override(DIGITS, {"launch.workers": 2})
    process = start(config, tmp_path)
    folder = trial_folder(tmp_path / "out", config)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("checkpoint_*/state.json"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    kill_group(process)
    killed_at = datetime.now(UTC)
    assert not (tmp_path / "out" / "default" / "trials").exists()

    process = start(config, tmp_path, "--resume")
    output, error = process.communicate(timeout=200)
    assert process.returncode == 0, output + error
    first, second = trial(undisturbed[0]), trial(tmp_path)
    assert second["started_at"] < killed_at, "it began anew"
    for expected, resumed in zip(network(first), network(second), strict=True):
        assert equal(expected, resumed)
    assert first["accuracy"] == second["accuracy"]
    assert second["wall_s"] > 0
    for name in ("rewires", "layers"):
        assert str(table(undisturbed[0], name)) == str(table(tmp_path, name))
    assert [row["step"] for row in table(undisturbed[0], "steps")] == [
        row["step"] for row in table(tmp_path, "steps")
    ]


def test_planted_divergence_is_found(tmp_path: Path) -> None:
    config = tiny({"model": "parts:diverging", "launch.workers": 2, "checkpoint.every_steps": 4})
    process = start(config, tmp_path)
    output, error = process.communicate(timeout=200)
    assert process.returncode == 1, output + error
    row = trial(tmp_path)
    assert row["status"] == "failed"
    assert row["error"].startswith("TopologyMismatch: ")
    assert "at step 6" in row["error"]
    assert "'second.weight'" in row["error"]
    assert "[1]" in row["error"]
    assert "\n" not in row["error"]
    assert f"failed: {row['error']}" in output
    # What the last checkpoint knew is there.
    assert {entry["step"] for entry in table(tmp_path, "rewires")} == {0, 3}
    assert [entry["step"] for entry in table(tmp_path, "steps")] == [4]


class TestOneSession:
    """Runs that share a Ray."""

    @pytest.mark.parametrize("shard", [False, True])
    def test_exactly_the_same_masks_in_double_precision(
        self, ray_session: None, tmp_path: Path, shard: bool
    ) -> None:
        from distsparse.launch.trainer import run_on_workers

        values = {
            **{name: value for name, value in DIGITS.items() if name != "checkpoint"},
            "train": {"epochs": 4, "batch_size": 50, "precision": "fp64", "accumulation": 5},
        }
        launch = {"launch.workers": 2, "launch.shard": shard}
        both = run_on_workers(override(values, launch), tmp_path / "two", verbose=False)
        alone = run_local(override(values, {}), tmp_path / "one", verbose=False)
        assert both["status"] == alone["status"] == "completed"
        assert both["num_updates"] == 8
        (weights, masks), (other_weights, other_masks) = network(both), network(alone)
        assert equal(masks, other_masks)
        for name in weights:
            assert torch.allclose(weights[name], other_weights[name], rtol=1e-9, atol=1e-12)
        assert both["accuracy"] == alone["accuracy"]
        assert both["loss"] == pytest.approx(alone["loss"], rel=1e-9)
        first = pd.read_parquet(tmp_path / "two" / "default" / "steps")["train_loss"]
        second = pd.read_parquet(tmp_path / "one" / "default" / "steps")["train_loss"]
        assert list(first) == pytest.approx(list(second), rel=1e-9)

    def test_worker_that_dies_is_a_failed_row(self, ray_session: None, tmp_path: Path) -> None:
        from distsparse.launch.trainer import run_on_workers

        config = tiny({"model": {"name": "parts:failing", "how": "kill", "at": 15}, "launch.workers": 2})
        config = override(config, {"launch.max_failures": 0})
        row = run_on_workers(config, tmp_path, verbose=False)
        assert row["status"] == "failed"
        assert row["error"]
        assert row["steps"] == 12
        assert trial_folder(tmp_path, config).exists()

    @pytest.mark.parametrize("shard", [False, True])
    def test_recorded_accuracy_is_that_of_the_saved_network(
        self, ray_session: None, tmp_path: Path, shard: bool
    ) -> None:
        """Normalisation's running statistics differ between ranks; the saved ones must be those evaluated."""
        from distsparse.launch.record import load_network as load_model
        from distsparse.launch.trainer import run_on_workers
        from distsparse.train import check

        config = tiny(
            {
                "model": {"name": "resnet20", "width": 0.25},
                "data": {"name": "parts:pictures", "samples": 16},
                "train": {"epochs": 1, "batch_size": 8},
                "launch.workers": 2,
                "launch.shard": shard,
            }
        )
        row = run_on_workers(config, tmp_path, verbose=False)
        assert row["status"] == "completed", row["error"]
        model, _ = load_model(config, Path(row["checkpoint"]))
        test = check(config).test
        with torch.no_grad():
            logits = model.eval()(test.inputs.float() / 255)
        loss = torch.nn.functional.cross_entropy(logits, test.labels)
        assert row["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_defaults_of_the_tests_are_one_process() -> None:
    assert TINY["launch"] == {"num_threads": 1}


def test_a_run_ends_well_though_nobody_can_watch_it(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from distsparse.launch import trainer

    queue_of = trainer.Queue

    def dead(**options: Any) -> Any:
        queue = queue_of(**options)
        ray.kill(queue.actor)
        return queue

    monkeypatch.setattr(trainer, "Queue", dead)
    row = trainer.run_on_workers(tiny({"launch.workers": 1}), tmp_path, verbose=True)
    assert row["status"] == "completed", row["error"]
