"""Real sweeps: side by side, with trials that fail and processes that die."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from parts import TINY
from probes import notes

import distsparse.sweep.run as sweep_run
from distsparse.cli.main import main
from distsparse.sweep import parse_space, sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FAULTS = {
    "study": "faults",
    # No second attempt: what comes of that is in test_durability.py.
    "base": {**TINY, "model": {"name": "parts:failing", "how": "never"}, "launch": {"max_failures": 0}},
    "search": "grid",
    "seeds": [0, 1],
    "space": {
        "model": {"grid": [{"name": "parts:failing", "how": how} for how in ("never", "raise", "kill")]}
    },
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    root = tmp_path_factory.mktemp("faults")
    return root, sweep(parse_space(FAULTS), root, num_cpus=2, verbose=False)


def how(trials: pd.DataFrame) -> pd.Series[Any]:
    return trials["config"].map(lambda text: json.loads(text)["model"]["how"])


def test_every_trial_is_a_row(faults: tuple[Path, pd.DataFrame]) -> None:
    _, trials = faults
    assert len(trials) == 6
    by_fault = trials.groupby(how(trials))["status"].unique().map(list).to_dict()
    assert by_fault == {"never": ["completed"], "raise": ["failed"], "kill": ["failed"]}


def test_failures_say_why(faults: tuple[Path, pd.DataFrame]) -> None:
    _, trials = faults
    raised = trials[how(trials) == "raise"]
    assert set(raised["error"]) == {"ArithmeticError: planted at call 13"}
    assert set(raised["steps"]) == {12}
    killed = trials[how(trials) == "kill"]
    assert set(killed["error"]) == {"ProcessDied: the process of the trial died"}


def test_trials_ran_side_by_side(faults: tuple[Path, pd.DataFrame]) -> None:
    """On two CPUs, some two trials overlap in time."""
    _, trials = faults
    spans = sorted(zip(trials["started_at"], trials["finished_at"], strict=True))
    assert any(second[0] < first[1] for first, second in pairwise(spans))


def test_nothing_but_results_is_left(faults: tuple[Path, pd.DataFrame]) -> None:
    root, trials = faults
    study = root / "faults"
    visible = {path.name for path in study.iterdir() if not path.name.startswith(".")}  # locks are hidden
    assert visible == {"trials", "steps", "rewires", "layers", "checkpoints"}
    assert {path.stem for path in (study / "trials").iterdir()} == set(trials["trial"])
    assert len(pd.read_parquet(study / "trials")) == 6
    assert pd.read_parquet(study / "layers")["trial"].nunique() == 2


def test_results_command_reads_the_root(
    faults: tuple[Path, pd.DataFrame], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = faults
    assert main(["results", str(root)]) == 0
    assert "planted at call 13" in capsys.readouterr().out


def test_completed_trials_are_not_run_again(
    faults: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, trials = faults
    completed = {**FAULTS, "space": {"model.how": {"grid": ["never"]}}}
    files = {path: path.stat().st_mtime_ns for path in (root / "faults").rglob("*.parquet")}

    def connected(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(sweep_run, "connected", connected)
    again = sweep(parse_space(completed), root, num_cpus=2, verbose=False)
    assert len(again) == len(trials)
    assert {path: path.stat().st_mtime_ns for path in (root / "faults").rglob("*.parquet")} == files


SPACE = """
study: small
search: random
num_samples: 9
space:
  method.alpha: {uniform: [0.1, 0.5]}
  method.delta_T: {quniform: [10, 30, 10]}
base:
  model: mine:network
  data: {name: digits}
  method: {name: rigl, sparsity: 0.9}
  train: {epochs: 3, batch_size: 50, evaluate_every: 1}
  launch: {num_threads: 1}
"""


def test_sweep_from_the_command_line(command: Any, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "mine.py").write_text("from parts import watched as network\n")
    arguments = ["sweep", "space.yaml", "--trials", 3, "--cpus", 2, "--output", "out"]
    result = command(*arguments, "--set", "train.epochs=2")
    assert result.returncode == 0, result.stdout + result.stderr
    trials = pd.read_parquet(tmp_path / "out" / "small" / "trials")
    assert list(trials["status"]) == ["completed"] * 3
    assert set(trials["epochs"]) == {2}
    assert trials["method.alpha"].nunique() == 3
    assert set(trials["method.delta_T"]) <= {10, 20, 30}
    assert (trials["latency_ms"] > 0).all()
    # Quiet: a line per trial, and nothing of Ray or Tune.
    assert result.stderr == ""
    assert "\r" not in result.stdout
    lines = result.stdout.splitlines()
    ended = [line.split() for line in lines if "accuracy 0" in line]
    assert [words[0] for words in ended] == ["1/3", "2/3", "3/3"]
    assert {words[1] for words in ended} == set(trials["trial"])
    assert all("method.alpha=" in line for line in lines if "accuracy 0" in line)
    assert f"3 of 3 trials completed; tables: {Path('out') / 'small'}" in lines
    # On a busy machine also how it stands, once a minute.
    assert len([line for line in lines if " running, " not in line and "  front  " not in line]) <= 7


@pytest.mark.parametrize("pool", [True, False])
def test_trials_of_two_workers(tmp_path: Path, pool: bool) -> None:
    space = parse_space(
        {
            "study": "wide",
            "worker_pool": pool,
            "base": {**TINY, "launch": {"workers": 2, "num_threads": 1}},
            "search": "grid",
            "space": {"model": {"grid": ["parts:watched", "parts:diverging"]}},
        }
    )
    trials = sweep(space, tmp_path, num_cpus=2, verbose=False).set_index("model.name")
    assert trials.loc["parts:watched", "status"] == "completed"
    assert trials.loc["parts:watched", "world_size"] == 2
    assert trials.loc["parts:diverging", "status"] == "failed"
    assert trials.loc["parts:diverging", "error"].startswith("TopologyMismatch: ")
    assert "step 6" in trials.loc["parts:diverging", "error"]


def test_pool_of_workers_serves_all_trials(tmp_path: Path) -> None:
    """Also after one of them dies: the trial goes on from its checkpoint with a new pool."""
    notes_folder = tmp_path / "notes"
    model = {"name": "probes:model", "folder": str(notes_folder), "kill_at": 0}
    base = {**TINY, "model": model, "launch": {"workers": 2, "num_threads": 1}}
    values = {"study": "pool", "base": base, "search": "grid"}
    three = parse_space({**values, "space": {"model.width": {"grid": [4, 5, 6]}}})
    trials = sweep(three, tmp_path, num_cpus=2, verbose=False)
    assert list(trials["status"]) == ["completed"] * 3
    assert list(trials["world_size"]) == [2] * 3
    assert len({note["pid"] for note in notes(notes_folder, "step")}) == 2
    model["kill_at"] = 16
    one = parse_space({**values, "space": {"model.width": {"grid": [7]}}})
    trials = sweep(one, tmp_path, num_cpus=2, verbose=False)
    assert list(trials["status"]) == ["completed"] * 4
    assert len({note["pid"] for note in notes(notes_folder, "step") if note["width"] == 7}) == 4


def test_trials_share_cores_data_and_processes(tmp_path: Path) -> None:
    """Two CPUs: two processes for all trials, a thread each; only the driver reads the data."""
    folder = str(tmp_path / "notes")
    base = {
        **TINY,
        "model": {"name": "probes:model", "folder": folder, "pause_s": 0.05},
        "data": {"name": "probes:data", "folder": folder},
        "launch": {},
    }
    space = {
        "study": "s",
        "base": base,
        "search": "grid",
        "space": {"model.width": {"grid": [4, 5, 6, 7, 8]}},
    }
    trials = sweep(parse_space(space), tmp_path, num_cpus=2, verbose=False)
    assert list(trials["status"]) == ["completed"] * 5
    steps = notes(tmp_path / "notes", "step")
    assert len({note["pid"] for note in steps}) == 2
    assert {note["threads"] for note in steps} == {1}
    assert {note["pid"] for note in notes(tmp_path / "notes", "load")} == {os.getpid()}


def test_fractions_of_a_gpu(tmp_path: Path) -> None:
    """Two trials of half a (logical) GPU run side by side, and see the same one."""
    import ray

    base = {
        **TINY,
        "model": {"name": "probes:model", "folder": str(tmp_path / "notes"), "pause_s": 0.1},
        "launch": {"num_threads": 1, "gpus_per_worker": 0.5},
    }
    space = {"study": "s", "base": base, "search": "grid", "space": {"model.width": {"grid": [4, 5]}}}
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False)
    try:
        trials = sweep(parse_space(space), tmp_path, verbose=False)
    finally:
        ray.shutdown()
    assert list(trials["status"]) == ["completed"] * 2
    spans = sorted(zip(trials["started_at"], trials["finished_at"], strict=True))
    assert spans[1][0] < spans[0][1]


@pytest.mark.parametrize("objectives", [{"accuracy": "max"}, {"accuracy": "max", "latency_ms": "min"}])
def test_adaptive_sweep_goes_on_where_it_was(tmp_path: Path, objectives: dict[str, str]) -> None:
    values = {
        "study": "learning",
        "base": {**TINY, "latency": {"measure": "latency_ms" in objectives}},
        "search": "tpe",
        "num_samples": 4,
        "seeds": [0, 1],
        "objectives": objectives,
        "space": {"method.alpha": {"uniform": [0.1, 0.5]}, "optimizer.lr": {"loguniform": [0.01, 1]}},
    }
    sweep(parse_space({**values, "max_trials": 3}), tmp_path, num_cpus=2, verbose=False)
    first = pd.read_parquet(tmp_path / "learning" / "trials")
    assert len(first) == 3
    trials = sweep(parse_space(values), tmp_path, num_cpus=2, verbose=False)
    assert list(trials["status"]) == ["completed"] * 8
    assert set(first["trial"]) < set(trials["trial"])
    assert (trials.groupby("method.alpha")["seed"].nunique() == 2).all()
    assert trials["method.alpha"].nunique() == 4


def test_trial_that_is_behind_is_stopped(tmp_path: Path) -> None:
    """After its grace; it stays so when the command is given again, and its process serves the next trial."""
    rates = [0.1, 0.0001, 0.11]
    values = {
        "study": "asha",
        "base": {**TINY, "train": {**TINY["train"], "epochs": 10}},
        "search": "grid",
        "asha": {"metric": "accuracy", "grace": 0.3},
        "space": {"optimizer.lr": {"grid": rates}},
    }
    for _ in range(2):
        trials = sweep(parse_space(values), tmp_path, num_cpus=1, verbose=False).set_index("optimizer.lr")
        assert dict(trials["status"]) == {0.1: "completed", 0.0001: "stopped", 0.11: "completed"}
        stopped = trials.loc[0.0001]
        assert 0.3 * 120 < stopped["steps"] < 120
        assert 0 < stopped["accuracy"] < 0.8
        assert pd.isna(stopped["error"])
    # Without the scheduler it goes on from its checkpoint.
    trials = sweep(parse_space({**values, "asha": None}), tmp_path, num_cpus=1, verbose=False)
    assert set(trials["status"]) == {"completed"}


def test_validation_objective_needs_a_validation_split(tmp_path: Path) -> None:
    space = {"base": TINY, "search": "tpe", "objectives": {"validation_accuracy": "max"}}
    space["space"] = {"method.alpha": {"uniform": [0.1, 0.5]}}
    with pytest.raises(
        ValueError, match=r"validation_accuracy needs a validation split; set data\.validation"
    ):
        sweep(parse_space(space), tmp_path, verbose=False)


def test_sweep_in_which_nothing_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = {**FAULTS, "space": {"model.how": {"choice": ["raise"]}}, "search": "random", "seeds": [0]}
    (tmp_path / "space.yaml").write_text(json.dumps(space))
    assert main(["sweep", str(tmp_path / "space.yaml"), "--cpus", "1", "--output", str(tmp_path)]) == 1
    assert "failed: ArithmeticError: planted at call 13" in capsys.readouterr().out
