"""How a sweep ends before its trials do: Ctrl-C, SIGTERM, or a time budget; each trial saves what it did."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

LOOK_EVERY_S = 0.2
"""seconds between two looks at the file: a look costs microseconds on a disk, milliseconds on a network's"""


@dataclass(frozen=True)
class StopRule:
    """What a trial, anywhere in the cluster, looks at between two steps."""

    file: str
    """exists once the user asked to stop; on the results' file system, which every node reaches"""
    deadline: float | None
    """of the time budget, in seconds since the epoch"""

    def applies(self) -> bool:
        """Return whether trials should stop now."""
        return (self.deadline is not None and time.time() >= self.deadline) or Path(self.file).exists()


class StopRequest:
    """The driver's side: what a signal calls."""

    def __init__(self, rule: StopRule) -> None:
        self._rule = rule
        self.stopping = False
        """whether the user asked to stop"""

    def stop(self) -> None:
        """Ask all trials to stop."""
        self.stopping = True
        Path(self._rule.file).touch()
