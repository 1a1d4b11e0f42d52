"""A sweep loses nothing and runs nothing twice: killed drivers, trials, nodes; Ctrl-C, budgets, company."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from parts import TINY
from probes import notes

from distsparse.sweep import parse_space, sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS = 24
EPOCH = 12
"""steps between two checkpoints"""


def space(root: Path, *, trials: int, **model: Any) -> dict[str, Any]:
    """A grid of trials that differ in their width, by which they note their steps."""
    return {
        "study": "study",
        "search": "grid",
        "space": {"model.width": {"grid": list(range(4, 4 + trials))}},
        "base": {**TINY, "model": {"name": "probes:model", "folder": str(root / "notes"), **model}},
    }


def start(root: Path, values: dict[str, Any], *options: str) -> subprocess.Popen[str]:
    (root / "space.json").write_text(json.dumps(values))
    return subprocess.Popen(
        [sys.executable, "-m", "distsparse", "sweep", "space.json", "--cpus", "2", "--output", ".", *options],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(root: Path) -> int:
    return len(list((root / "study" / "trials").glob("*.parquet")))


def wait_for(process: subprocess.Popen[str], root: Path, count: int) -> None:
    while finished(root) < count and process.poll() is None:
        time.sleep(0.02)


def steps(root: Path) -> Counter[int]:
    return Counter(n["width"] for n in notes(root / "notes", "step"))


def check_complete(root: Path, trials: int) -> pd.DataFrame:
    """Every trial has one row, and every file can be read."""
    found = {
        table: pd.read_parquet(root / "study" / table) for table in ("trials", "steps", "rewires", "layers")
    }
    rows = found["trials"]
    assert len(rows) == rows["trial"].nunique() == rows["model.width"].nunique() == trials
    assert set(rows["status"]) == {"completed"}
    assert set(rows["steps"]) == {STEPS}
    for table in ("steps", "rewires", "layers"):
        keys = ["trial", *(name for name in ("step", "layer") if name in found[table])]
        assert found[table]["trial"].nunique() == trials
        assert not found[table].duplicated(keys).any()
    # A process that was killed while writing leaves files that no reader sees.
    assert not [file for file in (root / "study").rglob("*.parquet") if file.stem not in set(rows["trial"])]
    return rows


def test_driver_killed_at_five_random_moments(tmp_path: Path) -> None:
    values = space(tmp_path, trials=40, pause_s=0.02)
    chance = random.Random(0)
    for share in range(5):
        process = start(tmp_path, values)
        wait_for(process, tmp_path, share * 7 + 1 + chance.randrange(6))
        time.sleep(chance.random())
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
    killed_at = finished(tmp_path)
    assert 29 <= killed_at < 40
    process = start(tmp_path, values)
    output, error = process.communicate(timeout=600)
    assert process.returncode == 0, output + error
    assert " of 40 trials completed before" in output
    check_complete(tmp_path, 40)
    done = steps(tmp_path)
    # Two trials ran at each of five kills; each began again at an epoch.
    assert sum(count > STEPS for count in done.values()) <= 10
    assert all(STEPS <= count <= STEPS + 5 * EPOCH for count in done.values())
    # What Tune keeps for itself is gone, also that of the killed drivers.
    assert not (tmp_path / ".tune").exists()


def test_killed_trial_is_begun_again_from_its_checkpoint(tmp_path: Path) -> None:
    values = space(tmp_path, trials=3, kill_at=EPOCH + 4)
    process = start(tmp_path, values)
    output, error = process.communicate(timeout=600)
    assert process.returncode == 0, output + error
    check_complete(tmp_path, 3)
    assert len(notes(tmp_path / "notes", "death")) == 3
    assert set(steps(tmp_path).values()) == {STEPS + 5}
    assert output.count("ProcessDied: the process of the trial died: attempt 2 of 4") == 3


def test_trial_that_dies_each_time_is_a_failed_row(tmp_path: Path) -> None:
    base = {**TINY, "model": {"name": "parts:failing", "how": "kill", "at": 5}, "launch": {"max_failures": 1}}
    values = {
        "study": "study",
        "base": base,
        "search": "grid",
        "space": {"method.alpha": {"grid": [0.2, 0.3]}},
    }
    rows = sweep(parse_space(values), tmp_path, num_cpus=2, verbose=False)
    assert list(rows["status"]) == ["failed", "failed"]
    assert set(rows["error"]) == {"ProcessDied: the process of the trial died"}


def test_killed_node(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()

        def kill_one() -> None:
            while finished(tmp_path) < 2:
                time.sleep(0.05)
            cluster.remove_node(nodes[0], allow_graceful=False)

        killer = threading.Thread(target=kill_one)
        killer.start()
        found = parse_space(space(tmp_path, trials=8, pause_s=0.05))
        sweep(found, tmp_path, address=cluster.address, verbose=False)
        killer.join()
    finally:
        cluster.shutdown()
    check_complete(tmp_path, 8)
    done = steps(tmp_path)
    assert sum(count > STEPS for count in done.values()) <= 1
    assert all(STEPS <= count <= STEPS + EPOCH for count in done.values())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_the_running_steps(tmp_path: Path, number: int, code: int) -> None:
    values = space(tmp_path, trials=8, pause_s=0.1)
    process = start(tmp_path, values)
    wait_for(process, tmp_path, 3)
    process.send_signal(number)
    output, error = process.communicate(timeout=200)
    assert process.returncode == code, output + error
    assert error.count("\n") == 1
    assert "the same `sweep` again" in error
    rows = pd.read_parquet(tmp_path / "study" / "trials")
    assert set(rows["status"]) == {"completed"}
    assert 3 <= len(rows) < 8
    process = start(tmp_path, values)
    output, error = process.communicate(timeout=600)
    assert process.returncode == 0, output + error
    check_complete(tmp_path, 8)
    assert set(steps(tmp_path).values()) == {STEPS}


def test_budgets_of_time_and_trials(tmp_path: Path) -> None:
    values = space(tmp_path, trials=6, pause_s=0.1)
    rows = sweep(parse_space({**values, "max_trials": 2}), tmp_path, num_cpus=2, verbose=False)
    assert list(rows["status"]) == ["completed", "completed"]
    begun = time.time()
    found = parse_space({**values, "base": {**values["base"], "train": {**TINY["train"], "epochs": 400}}})
    sweep(found.with_budget(time_budget_s=40, max_trials=None), tmp_path, num_cpus=2, verbose=False)
    assert 40 < time.time() - begun < 80
    assert finished(tmp_path) == 2
    assert len(list((tmp_path / "study" / "checkpoints").glob("*/step-*"))) > 2
    rows = sweep(parse_space(values), tmp_path, num_cpus=2, verbose=False)
    assert list(rows["status"]) == ["completed"] * 6


def test_two_sweeps_share_a_study(tmp_path: Path) -> None:
    values = space(tmp_path, trials=12, pause_s=0.05)
    both = [start(tmp_path, values), start(tmp_path, values)]
    for process in both:
        output, error = process.communicate(timeout=600)
        assert process.returncode == 0, output + error
        assert "12 of 12 trials completed" in output
    check_complete(tmp_path, 12)
    assert set(steps(tmp_path).values()) == {STEPS}
