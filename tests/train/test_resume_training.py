"""A run that was cut off and resumed ends as the undisturbed one, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from parts import TIMING, TINY, equal, tiny, trained, untimed
from ruamel.yaml import YAML

from distsparse.config import RunConfig, override
from distsparse.core import load_network
from distsparse.launch import run_local
from distsparse.launch.record import trial_folder
from distsparse.train import History, LocalReporter, check, train

PICTURES = {"name": "parts:pictures", "crop_padding": 1, "flip": True}
# A checkpoint every 7 steps of 24, updates every 3 or 5: most checkpoints lie within an interval.
CONFIGS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer.momentum": 0.9, "optimizer.weight_decay": 0.01, "data.validation": 20},
    "adamw, dropout, augmentation": {
        "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
        "model": {"name": "parts:dropout_mlp"},
        "data": PICTURES,
        "train.batch_size": 4,
        "method.delta_T": 5,
    },
    "micro-batches, clipping": {"train.accumulation": 5, "train.clip_norm": 0.5, "train.log_every": 5},
    "bf16": {"train.precision": "bf16"},
    "fp64, one cycle": {"train.precision": "fp64", "lr_schedule.name": "one-cycle"},
    "gradients summed over a window": {"method.grad_accumulation": 4, "method.delta_T": 5},
    "set": {"method": {"name": "set", "delta_T": 2, "sparsity": 0.8}},
    # A round of 24 steps, four of 18: checkpoints before the rewind point at 6, and after two prunes.
    "imp, late rewinding": {
        "method": {"name": "imp", "sparsity": 0.9, "prune_fraction": 0.5, "rewind_to": 0.25},
        "optimizer.momentum": 0.9,
    },
    "normalisation": {
        "model": {"name": "resnet20", "width": 0.25},
        "data": {**PICTURES, "channels": 3},
        "train.batch_size": 4,
        "train.log_every": 5,
    },
}


class Interrupted(LocalReporter):
    """Fails right after a checkpoint, as a killed process does."""

    def __init__(self, directory: Path, *, after: int) -> None:
        super().__init__(directory, keep=2)
        self._after = after

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        super().report(metrics, step=step, save=save)
        if step >= self._after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", CONFIGS)
def test_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    config = tiny({**CONFIGS[name], "checkpoint.every_steps": 7})
    network, masks, history = trained(config, tmp_path / "whole")
    assert history.summary["num_updates"] > 2
    folder = tmp_path / "parts"
    dataset = check(config)
    for after in (7, 14, 28, 49) if "imp" in name else (7, 14):
        with pytest.raises(KeyboardInterrupt):
            train(config, dataset, Interrupted(folder, after=after), history=History())
    resumed = History()
    reporter = LocalReporter(folder, keep=2)
    assert reporter.saved()
    train(config, dataset, reporter, history=resumed)
    resumed_network, resumed_masks = load_network(Path(reporter.saved()[-1]))
    assert equal(network, resumed_network)
    assert equal(masks, resumed_masks)
    assert untimed(history.steps) == untimed(resumed.steps)
    assert history.rewires == resumed.rewires
    assert untimed([history.summary]) == untimed([resumed.summary])


def test_elapsed_time_goes_on(tmp_path: Path) -> None:
    config = tiny({"checkpoint.every_steps": 7})
    dataset = check(config)
    first = History()
    with pytest.raises(KeyboardInterrupt):
        train(config, dataset, Interrupted(tmp_path, after=14), history=first)
    second = History()
    train(config, dataset, LocalReporter(tmp_path, keep=1), history=second)
    assert second.wall_s > second.train_s > first.steps[-1]["elapsed_s"] / 2 > 0
    assert second.started_at == first.started_at
    elapsed = [row["elapsed_s"] for row in second.steps]
    assert elapsed == sorted(elapsed)


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trained(tiny(), tmp_path)
    other = tiny({"model.hidden": [17]})
    with pytest.raises(ValueError, match=r"checkpoint .* is of another model"):
        train(other, check(other), LocalReporter(tmp_path, keep=1), history=History())


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    config = tiny()
    _, _, history = trained(config, tmp_path)
    resumed = History()
    train(config, check(config), LocalReporter(tmp_path, keep=1), history=resumed)
    assert resumed.steps == history.steps
    assert resumed.summary == history.summary


def rows(root: Path, table: str) -> list[dict[str, Any]]:
    frame = pd.read_parquet(root / "default" / table)
    return frame.drop(columns=[name for name in TIMING if name in frame]).to_dict("records")


KILLED: dict[str, dict[str, Any]] = {
    "sgd on digits": {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [40]},
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
        "method": {"name": "rigl", "delta_T": 10, "sparsity": 0.9},
        "train": {"epochs": 15, "batch_size": 50, "log_every": 9},
    },
    "adamw, dropout, augmentation": {
        "data": {"name": "digits", "crop_padding": 1, "flip": True},
        "model": {"name": "parts:dropout_mlp", "pause_s": 0.002},
        "optimizer": {"name": "adamw", "lr": 0.002},
        "method": {"name": "set", "delta_T": 10, "sparsity": 0.9},
        "train": {"epochs": 12, "batch_size": 50, "log_every": 9},
    },
}


@pytest.mark.parametrize("name", KILLED)
def test_killed_process_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    config: RunConfig = override(TINY, {**KILLED[name], "checkpoint.every_steps": 7})
    file = tmp_path / "run.yaml"
    with file.open("w") as stream:
        YAML().dump(config.to_dict(), stream)
    command = [sys.executable, "-m", "distsparse", "train", str(file), "--output", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = trial_folder(tmp_path / "killed", config)
    while len(list(folder.glob("step-*"))) < 2 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    killed_at = datetime.now(UTC)
    newest = max(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
    assert newest % 10 != 0
    assert newest < config.train.epochs * 28
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL, env=os.environ)

    whole = run_local(config, tmp_path / "whole", verbose=False)
    resumed = pd.read_parquet(tmp_path / "killed" / "default" / "trials").iloc[0]
    assert resumed["status"] == whole["status"] == "completed"
    assert resumed["started_at"] < killed_at, "it began anew"
    for first, second in zip(
        load_network(Path(whole["checkpoint"])), load_network(Path(resumed["checkpoint"])), strict=True
    ):
        assert equal(first, second)
    for table in ("steps", "rewires", "layers"):
        assert str(rows(tmp_path / "whole", table)) == str(rows(tmp_path / "killed", table))
    for column in ("accuracy", "loss", "nnz", "training_flops", "num_updates", "num_dropped"):
        assert resumed[column] == whole[column], column
