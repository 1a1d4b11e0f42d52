"""How the training loop talks to what runs it: one small protocol, and its form without Ray."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from distsparse.train import checkpoint


class Reporter(Protocol):
    """The runner's side of the loop. Every rank makes the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This process, 0 ≤ rank < world_size."""

    @property
    def world_size(self) -> int:
        """Number of data-parallel processes."""

    @property
    def stopping(self) -> bool:
        """Whether this process is asked to stop: the loop then saves and raises KeyboardInterrupt."""

    def checkpoints(self) -> Sequence[AbstractContextManager[Path]]:
        """Return the folders to resume from, newest first; none for a fresh start."""

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        """Pass on metrics, or a ``line`` for the user to read.

        ``save`` writes a checkpoint into a folder, and is called on rank 0 only.
        """


class LocalReporter:
    """One process; checkpoints are numbered folders below ``directory``, the newest ``keep`` of them."""

    rank = 0
    world_size = 1

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._directory = directory
        self._keep = keep
        self.stopping = False
        for unfinished in directory.glob(".step-*.tmp"):  # of a process that was killed while saving
            shutil.rmtree(unfinished)

    def saved(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(self._directory.glob("step-*"))

    def checkpoints(self) -> Sequence[AbstractContextManager[Path]]:
        """Return the complete checkpoints, newest first."""
        return [nullcontext(folder) for folder in reversed(self.saved())]

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        """Save the checkpoint under its step, then remove the oldest ones."""
        if save is None:
            return
        target = self._directory / f"step-{step:010d}"
        with checkpoint.atomic_folder(target) as folder:
            save(folder)
        for unreadable in self.saved():  # one that the run went back before, or it would count as the newest
            if unreadable.name > target.name:
                shutil.rmtree(unreadable)
        self._remove_all_but(self._keep)

    def finish(self) -> None:
        """Keep the last checkpoint alone: the run is over."""
        self._remove_all_but(1)

    def _remove_all_but(self, count: int) -> None:
        for old in self.saved()[:-count]:
            shutil.rmtree(old)
