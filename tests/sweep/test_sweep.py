"""Real sweeps: side by side, with trials that fail and processes that die."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from parts import TINY

import distsparse.sweep.run as sweep_run
from distsparse.cli.main import main
from distsparse.sweep import parse_space, sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FAULTS = {
    "study": "faults",
    "base": {**TINY, "model": {"name": "parts:failing", "how": "never"}},
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
    for error in killed["error"]:
        assert error
        assert "\n" not in error


def test_trials_ran_side_by_side(faults: tuple[Path, pd.DataFrame]) -> None:
    """On two CPUs, some two trials overlap in time."""
    _, trials = faults
    spans = sorted(zip(trials["started_at"], trials["finished_at"], strict=True))
    assert any(second[0] < first[1] for first, second in pairwise(spans))


def test_nothing_but_results_is_left(faults: tuple[Path, pd.DataFrame]) -> None:
    root, trials = faults
    study = root / "faults"
    assert {path.name for path in study.iterdir()} == {"trials", "steps", "rewires", "layers", "checkpoints"}
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
    assert len(lines) <= 7


def test_trials_of_two_workers(tmp_path: Path) -> None:
    space = parse_space(
        {
            "study": "wide",
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


def test_sweep_in_which_nothing_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = {**FAULTS, "space": {"model.how": {"choice": ["raise"]}}, "search": "random", "seeds": [0]}
    (tmp_path / "space.yaml").write_text(json.dumps(space))
    assert main(["sweep", str(tmp_path / "space.yaml"), "--cpus", "1", "--output", str(tmp_path)]) == 1
    assert "failed: ArithmeticError: planted at call 13" in capsys.readouterr().out
