"""Ctrl-C and SIGTERM at a run on two workers: it ends at once, and resumes from its last checkpoint."""

from __future__ import annotations

import json
import os
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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "distsparse", "train", "run.yaml", "--output", ".", *options],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def signalled(config: RunConfig, root: Path, number: int) -> tuple[int, str]:
    """Send a signal to the driver after the first checkpoint; return its exit code and its last words."""
    (root / "run.yaml").write_text(json.dumps(config.to_dict()))
    process = start(root)
    try:
        while not saved_by_ray(trial_folder(root, config)) and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, error


def check_stopped(config: RunConfig, root: Path, number: int, code: int, word: str) -> None:
    returned, error = signalled(config, root, number)
    assert returned == code, error
    assert error == f"distsparse: {word}; to go on: `train` with --resume, or the same `sweep` again\n"
    assert not (root / "default" / "trials").exists()


def test_ctrl_c(tmp_path: Path) -> None:
    config = planted("none", tmp_path, pause_s=0.2, **{"launch.workers": 2})
    check_stopped(config, tmp_path, signal.SIGINT, 130, "interrupted")


def test_terminated_run_resumes_bit_for_bit(two_undisturbed: dict[str, Any], tmp_path: Path) -> None:
    config = planted("none", tmp_path, pause_s=0.2, **{"launch.workers": 2})
    check_stopped(config, tmp_path, signal.SIGTERM, 143, "terminated")
    process = start(tmp_path, "--resume")
    output, error = process.communicate(timeout=200)
    assert process.returncode == 0, output + error
    assert "resumed at step" in output
    assert same(outcome(tmp_path, config), two_undisturbed)
