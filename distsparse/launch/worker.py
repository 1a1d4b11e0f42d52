"""What one Ray Train worker runs: the loop, with a reporter over ``ray.train``."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint

from distsparse import export
from distsparse.config import parse
from distsparse.train.history import History, Row
from distsparse.train.loop import train
from distsparse.train.setup import check


class TrainReporter:
    """``report`` is a barrier of all workers; Ray keeps the checkpoints in the run's storage."""

    @property
    def rank(self) -> int:
        """World rank of this worker."""
        return int(ray.train.get_context().get_world_rank())

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return int(ray.train.get_context().get_world_size())

    @contextmanager
    def last_checkpoint(self) -> Iterator[Path | None]:
        """Give the newest checkpoint that Ray registered."""
        last = ray.train.get_checkpoint()
        if last is None:
            yield None
        else:
            with last.as_directory() as folder:
                yield Path(folder)

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
    """Train on this worker; return the summary. ``values`` holds the plain configuration."""
    # Ray names this logger by file path, out of reach of its own logging configuration.
    import ray.train.v2._internal.execution.context as context

    context.logger.setLevel(logging.WARNING)
    config = parse(values["config"])
    return train(config, check(config), TrainReporter(), history=History(machine=export.describe()))
