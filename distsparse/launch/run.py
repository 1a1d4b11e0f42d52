"""Run one configuration, wherever it asks to run."""

from __future__ import annotations

import math
from pathlib import Path

from distsparse.config import IN_A_POPULATION, RunConfig
from distsparse.data import Dataset
from distsparse.launch.latency import record_latency
from distsparse.launch.local import run_local
from distsparse.launch.lock import exclusive
from distsparse.launch.record import checkpoints_of, discard, finished_row, trial_folder
from distsparse.loggers import Logs
from distsparse.train import storage
from distsparse.train.build import build_method
from distsparse.train.history import Row
from distsparse.train.setup import check, make_plan


def run(
    config: RunConfig, root: Path, *, resume: bool = False, verbose: bool = False, address: str | None = None
) -> Row:
    """Train, write the run's tables, measure latency; return the trial's row.

    Args:
        config: the run. With ``launch.workers`` = 0 it trains in this process, and Ray is not imported.
        root: the results' folder; rows go to ``<root>/<study>/<table>/<trial>.parquet``.
        resume: return the row of a run that completed, continue one that did not.
        verbose: show progress.
        address: of a running Ray cluster; None starts Ray on this machine if it is needed.

    Raises:
        ValueError: the configuration cannot run, see :func:`distsparse.train.setup.check`, or is that of a
            population's member; nothing started.
        TrialInUse: another process trains the same trial.
    """
    root = root.resolve()
    if config.population.id is not None:
        raise ValueError(f"population.id = {config.population.id!r}: {IN_A_POPULATION}")
    row = finished_row(root, config)
    if row is None or not resume:
        dataset = check(config)
        make_study_folder(root, config)
        if verbose:
            _announce(config, dataset, checkpoints_of(root, config), resume=resume)
        if config.launch.workers == 0:
            with exclusive(trial_folder(root, config)):
                discard(root, config, checkpoints=not resume)
                row = run_local(config, root, verbose=verbose)
        else:
            row = _run_on_ray(config, root, resume=resume, verbose=verbose, address=address)
    if row["status"] == "completed" and config.latency.measure and row.get("latency_ms") is None:
        row, problem = record_latency(root, config, row)
        if problem and verbose:
            print(problem)
    return row


def make_study_folder(root: Path, config: RunConfig) -> None:
    """Create the study's folder, so that one that cannot be is known before anything is trained.

    Raises:
        ValueError: the folder cannot be created, or ``checkpoint.storage`` not be written to.
    """
    try:
        (root / config.study).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output folder {root / config.study}: {error.strerror}") from None
    if config.checkpoint.storage is not None:
        storage.check_storage(config.checkpoint.storage)


def _announce(config: RunConfig, dataset: Dataset, place: str, *, resume: bool) -> None:
    print(f"trial {config.key} of study {config.study}: {config.method.name} on {config.data.name}")
    if resume and not storage.folders(place):
        print("no checkpoint of this configuration: starting from the beginning")
    method = build_method(config)
    total_steps = make_plan(config, dataset, method).total_steps
    if method.update and method.rounds == 1 and not method.update_schedule(total_steps):
        print(
            f"note: the masks are never updated: method.delta_T = {method.every} "
            f"and T_end is step {method.stop_step(total_steps)} of {total_steps}"
        )


def _run_on_ray(config: RunConfig, root: Path, *, resume: bool, verbose: bool, address: str | None) -> Row:
    try:
        from distsparse.launch.session import connected, require
        from distsparse.launch.trainer import run_on_workers
    except ImportError as error:
        raise ValueError(
            f"launch.workers = {config.launch.workers}: needs Ray (pip install 'distsparse[ray]'): {error}"
        ) from None
    needed = config.launch.workers * config.launch.cpus_per_worker
    # On one machine more workers than cores is slow, but a fair trial of the real thing.
    with (
        exclusive(trial_folder(root, config)),
        connected(address, num_cpus=max(math.ceil(needed), 1)),
    ):
        require(config.launch)
        discard(root, config, checkpoints=not resume)
        logs = Logs(config, root)
        row = run_on_workers(config, root, verbose=verbose, logs=logs)
        for line in logs.lines() if verbose else ():
            print(line)
        return row
