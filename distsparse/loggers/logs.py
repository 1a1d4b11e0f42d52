"""One run's trackers in one process: each in a thread of its own, and none can end the run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from textwrap import shorten
from threading import Thread

from distsparse.config import Loggers, RunConfig
from distsparse.loggers.records import Identity, Outcome, Record, Row, Tracker, outcome, records

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""settings, packages, extras and modules: all have these names"""
MOST_CHARACTERS = 300
"""of a reason: a database's has its whole SQL"""
PATIENCE_S = 60.0
"""seconds that the end of a run waits for what was not sent yet"""


def check_installed(settings: Loggers) -> None:
    """Check that the packages of the chosen trackers are installed.

    Raises:
        ValueError: naming the setting and the extra to install.
    """
    for name in _chosen(settings):
        spec = find_spec(name)
        # A folder of that name beside the script, where W&B keeps its files, looks like a package.
        if spec is None or spec.origin is None:
            value = getattr(settings, name)
            raise ValueError(f"loggers.{name} = {value!r}: needs pip install 'distsparse[{name}]'")


class Logs:
    """The trackers that a run's configuration asks for; what cannot be logged becomes a line, never an error.

    A run that is continued, in this process or another, continues the trackers' runs: all of its rows are
    offered again, and a tracker takes those that it has not seen. So none is missing and none is there twice,
    wherever a process died.

    Args:
        config: the run.
        root: the results' folder.
    """

    def __init__(self, config: RunConfig, root: Path) -> None:
        self._identity = Identity(config, root.resolve())
        self._channels: list[_Channel] | None = None
        self._num_sent = (0, 0)
        self._num_records = 0

    def begin(self, *, resumed: bool) -> None:
        """Start the trackers, once; a run that is not resumed replaces the one that it had there."""
        if self._channels is None:
            names = _chosen(self._identity.config.loggers)
            self._channels = [_Channel(name, self._identity, resumed=resumed) for name in names]

    def send(self, steps: Sequence[Row], rewires: Sequence[Row]) -> None:
        """Log what is new in a run's rows of these tables; it returns at once."""
        self.begin(resumed=True)
        seen_steps, seen_rewires = self._num_sent
        self._num_sent = len(steps), len(rewires)
        if self._channels:
            new = records(steps[seen_steps:], rewires[seen_rewires:])
            for channel in self._channels:
                channel.log(new, first=self._num_records)
            self._num_records += len(new)

    def end(self, row: Row, steps: Sequence[Row], rewires: Sequence[Row]) -> None:
        """Log all rows and how the run ended, and wait until they are sent.

        Args:
            row: of the ``trials`` table; ``status`` alone where the run was only left.
            steps: all that the run has.
            rewires: all that the run has.
        """
        self.send(steps, rewires)
        channels = self._channels or []
        for channel in channels:
            channel.end(outcome(row))
        # Less than the other workers wait for this one.
        deadline = time.monotonic() + min(PATIENCE_S, self._identity.config.launch.timeout_s / 2)
        for channel in channels:
            channel.join(max(deadline - time.monotonic(), 0))

    def lines(self) -> list[str]:
        """Return a line for each tracker that has failed, once."""
        return [line for channel in self._channels or [] if (line := channel.line())]


def _chosen(settings: Loggers) -> list[str]:
    return [name for name in TRACKERS if getattr(settings, name)]


class _Channel:
    """A tracker's thread: a server that is slow, or away, does not hold up the training."""

    def __init__(self, name: str, identity: Identity, *, resumed: bool) -> None:
        self._name, self._identity, self._resumed = name, identity, resumed
        self._calls: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        self._problem: str | None = None
        self._told = False
        self._abandoned = False
        self._thread = Thread(target=self._work, name=f"logs to {name}", daemon=True)
        try:
            # Only now: such packages are large. And here: beside the training it would cost that its time.
            self._module = import_module(f"distsparse.loggers.{name}")
        except Exception as error:  # whatever a package does
            self._fail(error)
            return
        self._thread.start()

    def log(self, new: Sequence[Record], *, first: int) -> None:
        """Log records, later; ``first`` were before them."""
        if self._problem is None:
            self._calls.put(lambda tracker: tracker.log(new[max(tracker.num_records - first, 0) :]))

    def end(self, ended: Outcome) -> None:
        """End the run, later."""
        self._calls.put(lambda tracker: tracker.end(ended))
        self._calls.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread."""
        if self._thread.ident is None:  # it was never started
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            # Another process may take the run up: from then on this one must not write.
            self._abandoned = True
            self._problem = f"no answer within {timeout_s:.0f} s"

    def line(self) -> str | None:
        """Return what went wrong, if it did and was not told."""
        if self._problem is None or self._told:
            return None
        self._told = True
        return f"{self._name} has not all of this run: {self._problem}"

    def _work(self) -> None:
        try:
            tracker: Tracker = self._module.open_run(self._identity, resumed=self._resumed)
            while (call := self._calls.get()) is not None and not self._abandoned:
                call(tracker)
        except Exception as error:  # whatever a package, the network or a disk does, the run goes on
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        # A server's address may hold a password.
        text = re.sub(r"//[^/@\s]+@", "//…@", str(error))
        reason = shorten(text, MOST_CHARACTERS, placeholder=" …")
        self._problem = f"{type(error).__name__}: {reason}"
