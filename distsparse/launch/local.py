"""A run in this process, without Ray."""

from __future__ import annotations

from pathlib import Path

from distsparse import export
from distsparse.config import RunConfig
from distsparse.launch.record import record_completed, record_failed, trial_folder
from distsparse.launch.stop import stops_on_signals
from distsparse.train.history import History, Row
from distsparse.train.loop import train
from distsparse.train.reporter import LocalReporter
from distsparse.train.setup import check


def run_local(config: RunConfig, root: Path, *, verbose: bool, reporter: LocalReporter | None = None) -> Row:
    """Train in this process, from the trial's last checkpoint if it has one; return the trial's row.

    A run that fails becomes a row with its error. A run that is interrupted leaves its checkpoints.
    On SIGINT or SIGTERM the step that runs is finished and saved first.

    Args:
        config: the run; ``launch.workers`` is not looked at.
        root: the results' folder.
        verbose: show progress.
        reporter: instead of one that only saves checkpoints below the trial's folder.

    Raises:
        KeyboardInterrupt: it was interrupted; the argument is the signal's number.
    """
    history = History(machine=export.describe())
    folder = trial_folder(root, config)
    if reporter is None:
        reporter = LocalReporter(folder, keep=config.checkpoint.keep)
    try:
        with stops_on_signals(reporter):
            train(config, check(config), reporter, history=history, verbose=verbose)
        row = record_completed(root, config, history, reporter.saved()[-1])
        reporter.finish()
        return row
    except Exception as error:  # whatever user code or hardware does, the sweep goes on
        return record_failed(root, config, history, f"{type(error).__name__}: {error}")
