"""What one Ray Train worker runs: the loop, with a reporter over ``ray.train``."""

from __future__ import annotations

import logging
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint
from ray.train.collective import broadcast_from_rank_zero

from distsparse import export
from distsparse.config import parse
from distsparse.launch.last_step import Follower
from distsparse.launch.rank_zero import logging_on_rank_zero
from distsparse.launch.record import saved_by_ray
from distsparse.train import storage
from distsparse.train.history import History, Row
from distsparse.train.loop import train
from distsparse.train.setup import check


class TrainReporter:
    """``report`` is a barrier of all workers; Ray keeps the checkpoints in the run's storage."""

    def __init__(self, place: str, follower: Follower | None) -> None:
        self._place = place
        self._follower = follower

    @property
    def rank(self) -> int:
        """World rank of this worker."""
        return int(ray.train.get_context().get_world_rank())

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return int(ray.train.get_context().get_world_size())

    def checkpoints(self) -> Sequence[AbstractContextManager[Path]]:
        """Return the checkpoints that rank 0 sees in the run's storage.

        Ray has not heard of one that was complete when a worker died right after it.
        """
        saved = saved_by_ray(self._place) if self.rank == 0 else []
        return [storage.reading(place) for place in reversed(broadcast_from_rank_zero(saved))]

    def stops_after(self, step: int) -> bool:
        """Tell whether the driver was interrupted, and all workers stop after this step."""
        return self._follower is not None and self._follower.stops_after(step)

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


def run_worker(values: dict[str, Any]) -> Row | None:
    """Train on this worker; return the summary, or None if the run was asked to stop, and is saved.

    Args:
        values: the plain configuration, the results' folder, the place of the trial's checkpoints, and the
            actor of :mod:`.last_step` or None.
    """
    # Ray names this logger by file path, out of reach of its own logging configuration.
    import ray.train.v2._internal.execution.context as context

    context.logger.setLevel(logging.WARNING)
    config = parse(values["config"])
    place = ray.train.get_context()
    follower = values["stop"] and Follower(
        values["stop"],
        group=broadcast_from_rank_zero(uuid.uuid4().hex),
        rank=place.get_world_rank(),
        world_size=place.get_world_size(),
        timeout_s=config.launch.timeout_s,
    )
    reporter = TrainReporter(values["place"], follower)
    history = History(machine=export.describe())
    try:
        with logging_on_rank_zero(config, Path(values["root"]), history, rank=reporter.rank) as logs:
            return train(config, check(config), reporter, history=history, logs=logs)
    except KeyboardInterrupt:  # the loop's own: this is not the thread that signals interrupt
        return None
