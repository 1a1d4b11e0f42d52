"""A sweep: every trial of a space through Ray Tune, side by side, each writing its own tables."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune
from ray.tune import Callback

from distsparse import results
from distsparse.config import RunConfig
from distsparse.launch import record_latency
from distsparse.launch.record import discard, finished_row, last_history, record_failed, trial_folder
from distsparse.launch.run import make_study_folder
from distsparse.launch.session import connected, require
from distsparse.sweep.space import Space
from distsparse.sweep.trial import run_trial
from distsparse.train import check
from distsparse.train.progress import Progress


def sweep(
    space: Space,
    root: Path,
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    verbose: bool = True,
) -> pd.DataFrame:
    """Run every trial of a space and measure latency; return the study's ``trials`` table.

    Trials that completed before, in the same study, are kept; one that was cut off continues from its last
    checkpoint. A trial that fails is a row with its error.

    Args:
        space: see :func:`distsparse.sweep.space.parse_space`.
        root: the results' folder; every node must reach it.
        address: of a running Ray cluster; None starts Ray on this machine.
        num_cpus: CPUs of a Ray started here; all by default.
        verbose: show progress.

    Raises:
        ValueError: a trial's configuration cannot run; raised before Ray starts.
    """
    root = root.resolve()
    configs = space.configs()
    waiting = [config for config in configs if finished_row(root, config) is None]
    _check_all(waiting)
    make_study_folder(root, space.base)
    progress = Progress(len(configs), initial=len(configs) - len(waiting), unit="trial", enabled=verbose)
    if len(waiting) < len(configs):
        progress.line(f"{len(configs) - len(waiting)} of {len(configs)} trials completed before")
    try:
        if waiting:
            _run_all(waiting, root, space, progress, address=address, num_cpus=num_cpus)
    finally:
        progress.close()
    _measure_all(configs, root, verbose=verbose)
    return results.load(root / space.base.study)


def _check_all(configs: Sequence[RunConfig]) -> None:
    """Check each configuration that differs from the ones before in more than its seed."""
    seen: set[str] = set()
    for config in configs:
        plain = config.to_dict() | {"seed": 0}
        if str(plain) not in seen:
            seen.add(str(plain))
            check(config)


class _Follow(Callback):  # type: ignore[misc]  # ray is untyped
    """Show each trial as it ends."""

    def __init__(self, configs: dict[str, RunConfig], root: Path, progress: Progress) -> None:
        self._configs, self._root, self._progress = configs, root, progress
        self.num_ended = 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial)

    def _ended(self, trial: Any) -> None:
        config = self._configs[trial.config["trial"]["key"]]
        rows = results.read_trial(self._root, study=config.study, trial=config.key)
        if rows is None:
            # The process itself died: nobody else can say so.
            reason = str(trial.get_error() or "the trial's process died").strip().splitlines()[-1]
            row = record_failed(self._root, config, last_history(trial_folder(self._root, config)), reason)
        else:
            row = rows[0]
        self.num_ended += 1
        self._progress.advance()
        if row["status"] == "completed":
            outcome = f"accuracy {row['accuracy']:.4f}  sparsity {row['sparsity']:.4f}  {row['wall_s']:.1f} s"
        else:
            outcome = f"failed: {row['error']}"
        count = f"{self.num_ended}/{len(self._configs)}"
        self._progress.line(f"{count:>7}  {config.key}  {outcome}  {trial.config['trial']['label']}")


def _run_all(
    configs: Sequence[RunConfig],
    root: Path,
    space: Space,
    progress: Progress,
    *,
    address: str | None,
    num_cpus: int | None,
) -> None:
    # Tune's own state holds pickles and nothing that a later sweep reads: not a part of the results.
    scratch = root / ".tune" / uuid.uuid4().hex
    follow = _Follow({config.key: config for config in configs}, root, progress)
    with connected(address, num_cpus=num_cpus):
        launch = space.base.launch
        fitting = require(launch)
        for config in configs:  # what a failed attempt left must not pass for this one's
            discard(root, config, checkpoints=False)
        if launch.workers > 0:
            # The trial itself only waits; its workers hold the CPUs. {"CPU": 0} alone is refused.
            resources = {"CPU": 0.0, "memory": 1.0}
        else:
            resources = {"CPU": launch.cpus_per_worker, "GPU": launch.gpus_per_worker}
        tuner = tune.Tuner(
            tune.with_resources(run_trial, resources),
            param_space={
                "root": str(root),
                "trial": tune.grid_search(
                    [
                        {"config": config.to_dict(), "key": config.key, "label": label}
                        for config, label in zip(configs, _labels(configs), strict=True)
                    ]
                ),
            },
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=min(space.max_concurrent or fitting, fitting),
                trial_dirname_creator=lambda trial: str(trial.config["trial"]["key"]),
            ),
            run_config=tune.RunConfig(
                name=space.base.study,
                storage_path=str(scratch),
                verbose=0,
                callbacks=[follow],
            ),
        )
        tuner.fit()
    if follow.num_ended < len(configs):
        raise KeyboardInterrupt  # Tune takes Ctrl-C as its own, and returns
    shutil.rmtree(scratch, ignore_errors=True)
    with suppress(OSError):  # another sweep's may still be there
        scratch.parent.rmdir()


def _labels(configs: Sequence[RunConfig]) -> list[str]:
    """Return what sets each trial apart from the others, in one line."""
    flats = [config.flat() for config in configs]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    # A parameter that some methods do not have differs only where it has two values.
    varying = [name for name in names if len({str(flat[name]) for flat in flats if name in flat}) > 1]
    return [
        " ".join(
            f"{name}={flat[name]:.4g}" if isinstance(flat[name], float) else f"{name}={flat[name]}"
            for name in varying
            if name in flat
        )
        for flat in flats
    ]


def _measure_all(configs: Sequence[RunConfig], root: Path, *, verbose: bool) -> None:
    """Measure latency one network after another, when no trial is left on the cores."""
    rows = [(config, finished_row(root, config)) for config in configs if config.latency.measure]
    open_ = [(config, row) for config, row in rows if row is not None and row["latency_ms"] is None]
    if not open_:
        return
    progress = Progress(len(open_), unit="network", enabled=verbose)
    progress.line(f"measuring latency of {len(open_)} networks")
    for config, row in open_:
        _, problem = record_latency(root, config, row)
        if problem:
            progress.line(f"{config.key}  {problem}")
        progress.advance()
    progress.close()
