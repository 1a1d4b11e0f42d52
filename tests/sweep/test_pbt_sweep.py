"""Real sweeps of a population: on digits, with a member that fails, and with a driver that is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from parts import TIMING, TINY
from test_durability import start

from distsparse import results
from distsparse.core import load_network
from distsparse.sweep import parse_space, sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DIGITS: dict[str, Any] = {
    "study": "pbt",
    "num_samples": 5,
    "pbt": {"metric": "validation_accuracy", "interval": 4, "quantile": 0.4},
    "space": {
        "optimizer.lr": {"choice": [1e30, 0.3, 0.2, 0.001, 0.0005]},
        "method.alpha": {"uniform": [0.2, 0.5]},
    },
    "base": {
        "model": {"name": "mlp", "hidden": [32]},
        "data": {"name": "digits", "validation": 200},
        "method": {"name": "rigl", "sparsity": 0.8, "delta_T": 20, "T_end": 0.5},
        "optimizer": {"name": "sgd"},
        "lr_schedule": {"name": "constant"},
        "train": {"epochs": 6, "batch_size": 50, "log_every": 6},
        "latency": {"measure": False},
        "launch": {"num_threads": 1},
    },
}
"""144 steps of 24 an epoch, compared once, after 96; masks are final after 72"""


def masks(root: Path, trial: str) -> dict[str, Any]:
    (saved,) = (root / "pbt" / "checkpoints" / trial).iterdir()
    network, found = load_network(saved)
    for name, mask in found.items():
        assert not network[name].flatten(1)[~mask].any()
    return {name: mask.tolist() for name, mask in found.items()}


def test_a_population_on_digits(tmp_path: Path) -> None:
    # Each rate once.
    values = {**DIGITS, "search": "grid", "num_samples": 1}
    values["space"] = {"optimizer.lr": DIGITS["space"]["optimizer.lr"]}
    trials = sweep(parse_space(values), tmp_path, num_cpus=2, verbose=False).set_index("trial")
    lineage = results.load(tmp_path, "lineage").set_index("trial")
    assert list(trials["population.member"].sort_values()) == [0, 1, 2, 3, 4]
    failed = trials[trials["status"] == "failed"]
    assert list(failed["population.member"]) == [0]
    assert "FloatingPointError" in failed["error"].iloc[0]
    completed = trials[trials["status"] == "completed"]
    assert len(completed) == 4
    assert set(completed["steps"]) == {144}
    rows = lineage[lineage["step"] == 96]
    assert set(rows.index) == set(completed.index)
    clones = rows[rows["source"].notna()]
    assert set(trials.loc[clones.index, "population.member"]) == {3, 4}
    steps = results.load(tmp_path, "steps")
    for trial, row in clones.iterrows():
        assert row["source_score"] > row["score"] + 0.2
        # No update came after the exchange: its masks are still its source's.
        assert masks(tmp_path, str(trial)) == masks(tmp_path, row["source"])
        own, theirs = (steps[steps["trial"] == name].set_index("step") for name in (trial, row["source"]))
        shared = ["train_loss", "learning_rate", "validation_accuracy"]
        pd.testing.assert_frame_equal(own.loc[:96, shared], theirs.loc[:96, shared])
        settings = json.loads(row["settings"])
        assert set(own.loc[97:, "learning_rate"]) == {settings["optimizer.lr"]}
        assert trials.loc[str(trial), "optimizer.lr"] == settings["optimizer.lr"]
    others = set(completed.index) - set(clones.index)
    first, second = (masks(tmp_path, trial) for trial in others)
    assert first != second
    # Nothing is left to do but the member that failed.
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "pbt").rglob("*.parquet")}
    again = sweep(parse_space(values), tmp_path, num_cpus=2, verbose=False)
    assert len(again) == 5
    changed = {file.stem for file, written in files.items() if file.stat().st_mtime_ns != written}
    assert changed == set(failed.index)


KILLED: dict[str, Any] = {
    "study": "killed",
    "num_samples": 5,
    "pbt": {"metric": "accuracy", "interval": 1, "grace": 0.0, "quantile": 0.4},
    "space": {"optimizer.lr": {"loguniform": [0.0001, 0.3]}, "method.delta_T": {"randint": [2, 9]}},
    "base": {
        **TINY,
        "model": {"name": "parts:dropout_mlp", "dropout": 0.1, "pause_s": 0.01},
        "train": {**TINY["train"], "epochs": 6},
    },
}


def outcome(root: Path) -> list[pd.DataFrame]:
    tables = [results.load(root, name) for name in ("trials", "steps", "rewires", "lineage")]
    when = [*TIMING, "started_at", "finished_at", "train_s", "wall_s", "checkpoint"]
    return [table.drop(columns=[name for name in when if name in table]) for table in tables]


def test_a_killed_driver_changes_nothing(tmp_path: Path) -> None:
    """Whenever it is killed, the same command ends with the same rows as if it had not been."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cut.mkdir()
    sweep(parse_space(KILLED), whole, num_cpus=2, verbose=False)
    decisions = cut / "killed" / "populations"
    for number in (1, 3):
        process = start(cut, KILLED)
        while process.poll() is None and _num_decided(decisions) < number:
            pass
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        assert _num_decided(decisions) < 5
    process = start(cut, KILLED)
    output, error = process.communicate(timeout=600)
    assert process.returncode == 0, output + error
    assert "goes on from" in output
    for expected, found in zip(outcome(whole), outcome(cut), strict=True):
        pd.testing.assert_frame_equal(found, expected)
    lineage = outcome(cut)[-1]
    assert (lineage.groupby("trial")["step"].agg(list).map(tuple) == (0, 12, 24, 36, 48, 60)).all()
    assert lineage["source"].notna().sum() >= 5


def _num_decided(folder: Path) -> int:
    found = [json.loads(file.read_bytes()) for file in folder.glob("*.json")]
    return len(found[0]) if found else 0


def test_on_a_pool_of_workers(tmp_path: Path) -> None:
    base = {**KILLED["base"], "launch": {"workers": 2, "num_threads": 1}}
    values = {**KILLED, "study": "pool", "base": base, "num_samples": 2}
    values["pbt"] = {**KILLED["pbt"], "interval": 2}
    values["space"] = {"optimizer.lr": {"choice": [0.1, 0.0001]}}
    trials = sweep(parse_space(values), tmp_path, num_cpus=2, verbose=False)
    assert list(trials["status"]) == ["completed"] * 2
    assert list(trials["world_size"]) == [2, 2]
    lineage = results.load(tmp_path, "lineage")
    assert set(lineage["step"]) == {0, 24, 48}
    assert lineage["source"].notna().any()
