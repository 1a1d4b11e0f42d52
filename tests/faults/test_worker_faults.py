"""Faults of one of two Ray Train workers; after a death, all begin again and end as if undisturbed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from plants import outcome, planted, same

from distsparse.config import RunConfig
from distsparse.launch.record import saved_by_ray, trial_folder
from distsparse.results import read_trial
from distsparse.train import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TWO = {"launch.workers": 2}


def run(config: RunConfig, root: Path) -> dict[str, Any]:
    from distsparse.launch.trainer import run_on_workers

    return run_on_workers(config, root, verbose=True)


def saved_steps(root: Path, config: RunConfig) -> list[int]:
    return [
        checkpoint.plain_values(Path(saved))["step"] for saved in saved_by_ray(trial_folder(root, config))
    ]


def told(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Lines on what failed and where it went on."""
    words = ("restart", "resumed", "cannot be read")
    return [line for line in capfd.readouterr().out.splitlines() if any(word in line for word in words)]


@pytest.mark.parametrize(
    ("fault", "rank"), [("forward", 1), ("all-reduce", 1), ("update", 0), ("checkpoint", 0)]
)
def test_killed_worker(
    fault: Any,
    rank: int,
    two_undisturbed: dict[str, Any],
    ray_session: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = planted(fault, tmp_path / "marker", rank=rank, **TWO)
    run(config, tmp_path)
    assert (tmp_path / "marker").exists(), "it was not killed"
    assert same(outcome(tmp_path, config), two_undisturbed)
    died, resumed = told(capfd)
    # The other worker may notice first, by its connection.
    assert died.startswith((f"WorkerDied: the process of worker {rank} died", "RuntimeError"))
    assert died.endswith(": restart 1 of 3")
    assert resumed == "resumed at step 5 of 24"


@pytest.mark.parametrize(("fault", "rank"), [("forward", 1), ("update", 0)])
def test_killed_worker_of_sharded_weights(
    fault: Any, rank: int, ray_session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sharded = {**TWO, "launch.shard": True}
    undisturbed = planted("none", tmp_path, **sharded)
    run(undisturbed, tmp_path)
    told(capfd)
    config = planted(fault, tmp_path / "marker", rank=rank, **sharded)
    run(config, tmp_path)
    assert (tmp_path / "marker").exists(), "it was not killed"
    assert same(outcome(tmp_path, config), outcome(tmp_path, undisturbed))
    _, resumed = told(capfd)
    assert resumed == "resumed at step 5 of 24"


def test_truncated_newest_checkpoint(
    two_undisturbed: dict[str, Any], ray_session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = planted("forward", tmp_path / "marker", at=13, **TWO, **{"launch.max_failures": 0})
    row = run(config, tmp_path)
    assert row["status"] == "failed"
    assert "\n" not in row["error"]
    assert saved_steps(tmp_path, config) == [5, 10]
    newest = Path(saved_by_ray(trial_folder(tmp_path, config))[-1])
    file = newest / "state.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    told(capfd)

    run(config, tmp_path)
    assert same(outcome(tmp_path, config), two_undisturbed)
    unreadable, resumed = told(capfd)
    assert unreadable.startswith(f"checkpoint {file} cannot be read: ")
    assert unreadable.endswith("; using the one before it")
    assert resumed == "resumed at step 5 of 24"


def test_nan_gradient_at_an_update_puts_it_off_on_all_ranks(ray_session: None, tmp_path: Path) -> None:
    config = planted("nan gradient", tmp_path / "marker", at=10, **TWO)
    row = run(config, tmp_path)
    assert row["status"] == "completed", row["error"]
    rows = read_trial(tmp_path, study="default", trial=config.key, table="rewires") or []
    assert sorted({line["step"] for line in rows}) == [0, 3, 6, 10, 12, 15, 18]


@pytest.mark.parametrize(("fault", "rank"), [("hang", 1), ("hanging checkpoint", 0)])
def test_hanging_worker_ends_the_run(
    fault: Any, rank: int, ray_session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It would hang for ten minutes: longer than this test may take."""
    config = planted(fault, tmp_path / "marker", rank=rank, **TWO, **{"launch.timeout_s": 10.0})
    row = run(config, tmp_path)
    assert row["status"] == "failed"
    other = 1 - rank
    assert (
        row["error"] == f"TimeoutError: worker {other} waited for worker {rank} longer than launch.timeout_s"
    )
    assert told(capfd) == [], "it was tried again"
    assert saved_steps(tmp_path, config) == [5]
