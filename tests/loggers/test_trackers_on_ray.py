"""Trackers of runs on Ray: rank 0 logs, the driver ends the run; of a sweep each trial logs its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import readers
from parts import TINY, tiny
from test_trackers import READERS, check_equal

from distsparse.config import override
from distsparse.launch import run
from distsparse.sweep import parse_space, sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ON = {"loggers.tensorboard": True}


def test_workers_are_one_run(tmp_path: Path) -> None:
    config = tiny({**ON, "launch.workers": 2})
    row = run(config, tmp_path)
    logged = readers.tensorboard(tmp_path, config)
    check_equal(logged, tmp_path, config)
    assert "gradient_bytes" in logged.values
    assert logged.status == "completed"
    assert logged.final_accuracy == pytest.approx(row["accuracy"])


@pytest.mark.parametrize("workers", [0, 2])
def test_each_trial_of_a_sweep_is_a_run(workers: int, tmp_path: Path) -> None:
    installed = {"tensorboard": True, "mlflow": True}
    try:
        import mlflow  # noqa: F401
    except ImportError:
        del installed["mlflow"]
    loggers: dict[str, Any] = installed
    launch = {"workers": workers, "max_failures": 0, "num_threads": 1}
    base = {**TINY, "loggers": loggers, "launch": launch}
    hows = ["never", "raise", "kill"] if workers == 0 else ["never", "raise"]
    models = [{"name": "parts:failing", "how": how} for how in hows]
    space = {"study": "s", "base": base, "search": "grid", "space": {"model": {"grid": models}}}
    sweep(parse_space(space), tmp_path, num_cpus=2, verbose=False)
    errors = {
        "never": "completed",
        "raise": "failed: ArithmeticError: planted",
        "kill": "failed: ProcessDied",
    }
    for model in models:
        config = override(base, {"study": "s", "model": model})
        for name in installed:
            logged = READERS[name](tmp_path, config)
            assert logged.status.startswith(errors[model["how"]])
            assert bool(logged.final_accuracy) == (model["how"] == "never")
            assert logged.values["train_loss"][0][0] == 4
            if model["how"] == "never":
                check_equal(logged, tmp_path, config)
