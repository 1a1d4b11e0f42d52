"""What one Ray Train worker runs: the loop, with a reporter over ``ray.train``."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint
from ray.train.collective import broadcast_from_rank_zero

from distsparse import export
from distsparse.config import parse
from distsparse.launch.record import saved_by_ray
from distsparse.train.history import History, Row
from distsparse.train.loop import train
from distsparse.train.setup import check


class TrainReporter:
    """``report`` is a barrier of all workers; Ray keeps the checkpoints in the run's storage."""

    stopping = False
    """Ctrl-C is the driver's, and Ray ends the workers"""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def rank(self) -> int:
        """World rank of this worker."""
        return int(ray.train.get_context().get_world_rank())

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return int(ray.train.get_context().get_world_size())

    def checkpoints(self) -> Sequence[AbstractContextManager[Path]]:
        """Return the folders that rank 0 sees in the run's storage.

        Ray has not heard of one that was complete when a worker died right after it.
        """
        names = [saved.name for saved in saved_by_ray(self._folder)] if self.rank == 0 else []
        return [nullcontext(self._folder / name) for name in reversed(broadcast_from_rank_zero(names))]

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        """Report on every rank; rank 0 attaches the checkpoint."""
        if save is None or self.rank != 0:
            ray.train.report({**metrics, "step": step})
            return
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            ray.train.report({**metrics, "step": step}, checkpoint=Checkpoint.from_directory(folder))


def run_worker(values: dict[str, Any]) -> Row:
    """Train on this worker; return the summary. ``values``: the plain configuration, the trial's folder."""
    # Ray names this logger by file path, out of reach of its own logging configuration.
    import ray.train.v2._internal.execution.context as context

    context.logger.setLevel(logging.WARNING)
    config = parse(values["config"])
    reporter = TrainReporter(Path(values["folder"]))
    return train(config, check(config), reporter, history=History(machine=export.describe()))
