"""Run one configuration, wherever it asks to run."""

from __future__ import annotations

import math
from pathlib import Path

from distsparse import results
from distsparse.config import RunConfig
from distsparse.launch.local import run_local
from distsparse.launch.record import finished_row, record_latency
from distsparse.train.history import Row
from distsparse.train.setup import check


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
        ValueError: the configuration cannot run, see :func:`distsparse.train.setup.check`; nothing started.
    """
    root = root.resolve()
    # Asked for in any case: a study that is no folder's name is refused before anything is written.
    row = finished_row(root, config)
    if row is None or not resume:
        check(config)
        # The rows of an earlier run would speak of checkpoints that this one replaces.
        results.remove_trial(root, study=config.study, trial=config.key)
        if verbose:
            print(f"trial {config.key} of study {config.study}: {config.method.name} on {config.data.name}")
        if config.launch.workers == 0:
            row = run_local(config, root, resume=resume, verbose=verbose)
        else:
            row = _run_on_ray(config, root, resume=resume, verbose=verbose, address=address)
    if row["status"] == "completed" and config.latency.measure and row.get("latency_ms") is None:
        row = record_latency(root, config, row)
    return row


def _run_on_ray(config: RunConfig, root: Path, *, resume: bool, verbose: bool, address: str | None) -> Row:
    try:
        from distsparse.launch.session import connected
        from distsparse.launch.trainer import run_on_workers
    except ImportError as error:
        raise ValueError(
            f"launch.workers = {config.launch.workers}: needs Ray (pip install 'distsparse[ray]'): {error}"
        ) from None
    needed = config.launch.workers * config.launch.cpus_per_worker
    # On one machine more workers than cores is slow, but a fair trial of the real thing.
    with connected(address, num_cpus=max(math.ceil(needed), 1)):
        return run_on_workers(config, root, resume=resume, verbose=verbose)
