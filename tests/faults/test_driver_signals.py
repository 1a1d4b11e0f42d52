"""Ctrl-C and SIGTERM at a run on two workers: the running step is saved, and resumed from bit for bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from plants import outcome, planted, same

from distsparse.config import RunConfig
from distsparse.launch.record import saved_by_ray, trial_folder
from distsparse.train import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "distsparse", "train", "run.yaml", "--output", ".", *options],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def saved_steps(root: Path, config: RunConfig) -> list[int]:
    return [
        checkpoint.plain_values(Path(saved))["step"] for saved in saved_by_ray(trial_folder(root, config))
    ]


def signalled(config: RunConfig, root: Path, number: int, *, group: bool = False, times: int = 1) -> str:
    """Send a signal to the driver after the checkpoint of step 5; return what it printed."""
    (root / "run.yaml").write_text(json.dumps(config.to_dict()))
    process = start(root)
    try:
        while not saved_by_ray(trial_folder(root, config)) and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        for _ in range(times):
            (os.killpg if group else os.kill)(process.pid, number)
            time.sleep(0.2)
        output, error = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + number, error
    assert (
        error == f"distsparse: {WORDS[number]}; to go on: `train` with --resume, or the same `sweep` again\n"
    )
    assert not (root / "default" / "trials").exists()
    return output


@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGINT, True)]
)
def test_running_step_is_saved(
    number: int, group: bool, two_undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """A terminal sends Ctrl-C to the whole group of processes."""
    config = planted("none", tmp_path, pause_s=0.5, **{"launch.workers": 2})
    output = signalled(config, tmp_path, number, group=group)
    (stopped,) = re.findall(r"stopped at step (\d+) of 24, and saved", output)
    assert 5 < int(stopped) < 10, "it went on to the next checkpoint that was due"
    assert saved_steps(tmp_path, config) == [5, int(stopped)]
    assert_resumes(config, tmp_path, int(stopped), two_undisturbed)


def test_sigterm_to_the_whole_group_ends_workers_but_leaves_the_last_checkpoint(
    two_undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """As a batch scheduler may send it. Ray's own processes end, and the driver when it finds them gone."""
    config = planted("none", tmp_path, pause_s=0.5, **{"launch.workers": 2})
    (tmp_path / "run.yaml").write_text(json.dumps(config.to_dict()))
    process = start(tmp_path)
    try:
        while not saved_by_ray(trial_folder(tmp_path, config)) and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert_resumes(config, tmp_path, saved_steps(tmp_path, config)[-1], two_undisturbed)


def assert_resumes(config: RunConfig, root: Path, step: int, undisturbed: dict[str, Any]) -> None:
    process = start(root, "--resume")
    output, error = process.communicate(timeout=400)
    assert process.returncode == 0, output + error
    assert f"resumed at step {step} of 24" in output
    assert same(outcome(root, config), undisturbed)


def test_second_signal_does_not_wait_for_the_step(tmp_path: Path) -> None:
    config = planted("hang", tmp_path / "marker", at=7, **{"launch.workers": 2})
    output = signalled(config, tmp_path, signal.SIGINT, times=2)
    assert "stopped" not in output
    assert saved_steps(tmp_path, config) == [5]
