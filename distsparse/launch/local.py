"""A run in this process, without Ray."""

from __future__ import annotations

from pathlib import Path

from distsparse import export
from distsparse.config import RunConfig
from distsparse.data import Dataset
from distsparse.launch.record import checkpoints_of, record_completed, record_failed
from distsparse.launch.stop import stops_on_signals
from distsparse.loggers import Logs
from distsparse.train.history import History, Row
from distsparse.train.loop import train
from distsparse.train.reporter import LocalReporter
from distsparse.train.setup import check


def run_local(
    config: RunConfig,
    root: Path,
    *,
    verbose: bool,
    reporter: LocalReporter | None = None,
    dataset: Dataset | None = None,
    logs: Logs | None = None,
) -> Row:
    """Train in this process, from the trial's last checkpoint if it has one; return the trial's row.

    A run that fails becomes a row with its error. A run that is interrupted leaves its checkpoints.
    On SIGINT or SIGTERM the step that runs is finished and saved first.

    Args:
        config: the run; ``launch.workers`` is not looked at.
        root: the results' folder.
        verbose: show progress.
        reporter: instead of one that only saves checkpoints below the trial's folder.
        dataset: the configured one, where it is at hand.
        logs: the experiment trackers, for a caller that shows what they could not log.

    Raises:
        KeyboardInterrupt: it was interrupted; the argument is the signal's number.
    """
    history = History(machine=export.describe())
    logs = logs or Logs(config, root)
    if reporter is None:
        reporter = LocalReporter(checkpoints_of(root, config), keep=config.checkpoint.keep)
    row: Row = {"status": "stopped"}  # by a scheduler, which ends a trial by SystemExit
    try:
        with stops_on_signals(reporter.stop):
            dataset = check(config, dataset)
            train(config, dataset, reporter, history=history, logs=logs, verbose=verbose)
        row = record_completed(root, config, history, reporter.saved()[-1], dataset=dataset)
        reporter.finish()
    except KeyboardInterrupt:
        row = {"status": "interrupted"}
        raise
    except Exception as error:  # whatever user code or hardware does, the sweep goes on
        row = record_failed(root, config, history, f"{type(error).__name__}: {error}")
    finally:
        logs.end(row, history.steps, history.rewires)
        for line in logs.lines() if verbose else ():
            print(line)
    return row
