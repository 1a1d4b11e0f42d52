"""How the training loop talks to what runs it: one small protocol, and its form without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from distsparse.train import storage

_PREFIX = "step-"


class Reporter(Protocol):
    """The runner's side of the loop. Every rank makes the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This process, 0 ≤ rank < world_size."""

    @property
    def world_size(self) -> int:
        """Number of data-parallel processes."""

    def checkpoints(self) -> Sequence[AbstractContextManager[Path]]:
        """Return the folders to resume from, newest first; none for a fresh start."""

    def stops_after(self, step: int) -> bool:
        """Tell whether the run is to stop after this step: the loop then saves and raises KeyboardInterrupt.

        Called after each step but the last; the answer is the same on all ranks.
        """

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        """Pass on metrics, or a ``line`` for the user to read.

        ``save`` writes a checkpoint into a folder, and is called on rank 0 only.
        """


def saved_in(place: str | Path) -> list[str]:
    """Return the places of a trial's numbered checkpoints, oldest first."""
    return [saved for saved in storage.folders(place) if storage.name_of(saved).startswith(_PREFIX)]


def name_of_step(step: int) -> str:
    """Return the name of the checkpoint after a step."""
    return f"{_PREFIX}{step:010d}"


class LocalReporter:
    """One process; checkpoints are numbered folders below a place, the newest ``keep`` of them.

    The place is a path, or a URI that pyarrow reaches.
    """

    rank = 0
    world_size = 1

    def __init__(self, place: str | Path, *, keep: int) -> None:
        self._place = place
        self._keep = keep
        self._stopping = False
        storage.remove_unfinished(place)

    def saved(self) -> list[str]:
        """Return the places of the checkpoints, oldest first."""
        return saved_in(self._place)

    def checkpoints(self) -> Sequence[AbstractContextManager[Path]]:
        """Return the checkpoints, newest first."""
        return [storage.reading(saved) for saved in reversed(self.saved())]

    def stop(self) -> None:
        """Let the loop stop after the step that runs."""
        self._stopping = True

    def stops_after(self, step: int) -> bool:
        """Tell whether :meth:`stop` was called."""
        return self._stopping

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        """Save the checkpoint under its step, then remove the oldest ones."""
        if save is None:
            return
        target = storage.join(self._place, name_of_step(step))
        with storage.writing(target) as folder:
            save(folder)
        for unreadable in self.saved():  # one that the run went back before, or it would count as the newest
            if storage.name_of(unreadable) > storage.name_of(target):
                storage.remove(unreadable)
        self._remove_all_but(self._keep)

    def finish(self) -> None:
        """Keep the last checkpoint alone: the run is over."""
        self._remove_all_but(1)

    def _remove_all_but(self, count: int) -> None:
        for old in self.saved()[:-count]:
            storage.remove(old)
