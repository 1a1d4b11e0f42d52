"""One trial, inside Ray Tune: trains here, on a pool of workers, or on Ray Train workers of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from distsparse.config import RunConfig, parse
from distsparse.data import Dataset
from distsparse.launch.latency import record_latency
from distsparse.launch.local import run_local
from distsparse.launch.lock import TrialInUse, exclusive
from distsparse.launch.record import checkpoints_of, discard, finished_row, trial_folder, write_table
from distsparse.launch.trainer import run_on_workers
from distsparse.loggers import Logs
from distsparse.sweep.asha import METRICS, Asha
from distsparse.sweep.pool import run_on_pool
from distsparse.sweep.population import standing
from distsparse.sweep.shared import data_key, fetch
from distsparse.sweep.stop import LOOK_EVERY_S, StopRule
from distsparse.train.build import build_method
from distsparse.train.history import Row
from distsparse.train.reporter import LocalReporter
from distsparse.train.setup import load_data, make_plan

IN_USE = "in use"
INTERRUPTED = "interrupted"


class TuneReporter(LocalReporter):
    """Checkpoints as on one machine; metrics to Tune where a scheduler reads them."""

    def __init__(
        self,
        place: str,
        *,
        keep: int,
        rule: StopRule,
        progress: Callable[[int], float | None] | None,
        until: int | None,
    ) -> None:
        super().__init__(place, keep=keep)
        self._rule, self._looked_at, self._progress, self._until = rule, 0.0, progress, until

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        """Save first: a trial that the scheduler ends here has its row from its checkpoint."""
        super().report(metrics, step=step, save=save)
        if self._progress is None or metrics.get("steps") != step:
            return
        progress = self._progress(step)
        if progress is not None:
            tune.report({"progress": progress, **{name: metrics.get(name) for name in METRICS}})

    def stops_after(self, step: int) -> bool:
        """Tell whether the step ends the trial's part, or the sweep is asked to stop, as of a moment ago."""
        if step == self._until:
            return True
        if time.monotonic() - self._looked_at > LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            if self._rule.applies():
                self.stop()
        return super().stops_after(step)


def run_trial(
    values: dict[str, Any],
    *,
    rule: StopRule,
    shared: Mapping[str, ray.ObjectRef],
    measure: bool,
    pool: bool,
    asha: Asha | None,
) -> None:
    """Train one configuration and write its rows; a failure is a row and a report, never an exception.

    An exception would end the process, which the next trial wants to use. Only a process that dies is begun
    again, by Tune, and goes on from its checkpoint.

    Args:
        values: ``config`` (plain), ``root``; of a member of a population the step ``until`` which it trains
            now, or None, and its rows of ``lineage``.
        rule: when to stop early.
        shared: data sets that the driver loaded.
        pool: run data-parallel trials on workers that stay, instead of a Ray Train run of each trial's own.
        asha: the scheduler's rule, which hears of evaluations after the grace.
        measure: measure latency at once, beside other trials, because the search reads it.
    """
    config, root = parse(values["config"]), Path(values["root"])
    logs = Logs(config, root)
    try:
        with exclusive(trial_folder(root, config)):
            row = finished_row(root, config)
            if row is None:
                # The row of an attempt that failed must not pass for this one's.
                discard(root, config, checkpoints=False)
                if values["lineage"]:
                    write_table(root, config, "lineage", values["lineage"])
                row = _train(config, root, rule, shared, logs, pool=pool, asha=asha, until=values["until"])
            if measure and row["status"] == "completed" and row.get("latency_ms") is None:
                record_latency(root, config, row)
            ended = {"status": row["status"], "error": row.get("error")}
    except TrialInUse:
        ended = {"status": IN_USE}
    except KeyboardInterrupt:
        ended = {"status": INTERRUPTED}  # the sweep stops, or a member of a population has done its part
    tune.report({**ended, "lines": logs.lines(), "done": True})


def _train(
    config: RunConfig,
    root: Path,
    rule: StopRule,
    shared: Mapping[str, ray.ObjectRef],
    logs: Logs,
    *,
    pool: bool,
    asha: Asha | None,
    until: int | None,
) -> Row:
    here = standing(checkpoints_of(root, config)) if until is not None else None
    if here is not None and here.step == until:  # a process that died right after it had saved
        raise KeyboardInterrupt
    reference = shared.get(data_key(config))
    if config.launch.workers > 0:
        if pool:
            return run_on_pool(config, root, rule, reference, logs, until=until)
        return run_on_workers(config, root, verbose=False, callbacks=[TuneReportCallback()], logs=logs)
    dataset = None if reference is None else fetch(reference)
    progress = None if asha is None else partial(_progress, asha, config, dataset)
    place, keep = checkpoints_of(root, config), config.checkpoint.keep
    reporter = TuneReporter(place, keep=keep, rule=rule, progress=progress, until=until)
    return run_local(config, root, verbose=False, reporter=reporter, dataset=dataset, logs=logs)


def _progress(asha: Asha, config: RunConfig, dataset: Dataset | None, step: int) -> float | None:
    plan = make_plan(config, dataset or load_data(config), build_method(config))
    return asha.progress(config, step, plan.total_steps)
