"""How the training loop talks to what runs it: one small protocol, and its form without Ray."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
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

    def last_checkpoint(self) -> AbstractContextManager[Path | None]:
        """Give the folder to resume from, or None for a fresh start."""

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        """Pass on metrics; ``save`` writes a checkpoint into a folder, and is called on rank 0 only."""


class LocalReporter:
    """One process; checkpoints are numbered folders below ``directory``, the newest ``keep`` of them."""

    rank = 0
    world_size = 1

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._directory = directory
        self._keep = keep
        for unfinished in directory.glob(".step-*.tmp"):  # of a process that was killed while saving
            shutil.rmtree(unfinished)

    def saved(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(self._directory.glob("step-*"))

    @contextmanager
    def last_checkpoint(self) -> Iterator[Path | None]:
        """Give the newest complete checkpoint."""
        saved = self.saved()
        yield saved[-1] if saved else None

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        """Save the checkpoint under its step, then remove the oldest ones."""
        if save is None:
            return
        with checkpoint.atomic_folder(self._directory / f"step-{step:010d}") as folder:
            save(folder)
        self._remove_all_but(self._keep)

    def finish(self) -> None:
        """Keep the last checkpoint alone: the run is over."""
        self._remove_all_but(1)

    def _remove_all_but(self, count: int) -> None:
        for old in self.saved()[:-count]:
            shutil.rmtree(old)
