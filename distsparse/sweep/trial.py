"""One trial, inside Ray Tune: trains here, or on Ray Train workers of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from distsparse.config import RunConfig, parse
from distsparse.launch.local import run_local
from distsparse.launch.lock import TrialInUse, exclusive
from distsparse.launch.record import finished_row, trial_folder
from distsparse.launch.trainer import run_on_workers
from distsparse.train.history import Row
from distsparse.train.reporter import LocalReporter


class TuneReporter(LocalReporter):
    """Checkpoints as on one machine, and metrics to Tune."""

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        """Save first: what Tune has heard of can be resumed."""
        super().report(metrics, step=step, save=save)
        if metrics.get("steps") == step:
            tune.report({"accuracy": metrics["accuracy"], "step": step})


def run_trial(values: dict[str, Any]) -> None:
    """Train one configuration and write its rows; a failure is a row and a report, never an exception.

    An exception would end the process, which the next trial wants to use.
    """
    config, root = parse(values["trial"]["config"]), Path(values["root"])
    try:
        with exclusive(trial_folder(root, config)):
            row = finished_row(root, config) or _train(config, root)
    except TrialInUse as error:  # of another sweep of the same study: its row will be this one's
        row = {"status": "failed", "error": str(error)}
    tune.report({"accuracy": row.get("accuracy"), "status": row["status"], "step": row.get("steps")})


def _train(config: RunConfig, root: Path) -> Row:
    if config.launch.workers > 0:
        return run_on_workers(config, root, verbose=False, callbacks=[TuneReportCallback()])
    reporter = TuneReporter(trial_folder(root, config), keep=config.checkpoint.keep)
    return run_local(config, root, verbose=False, reporter=reporter)
