"""The experiment trackers of a run on several processes: rank 0 logs its rows, the driver how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distsparse.config import RunConfig
from distsparse.loggers import Logs
from distsparse.train.history import History


@contextmanager
def logging_on_rank_zero(
    config: RunConfig, root: Path, history: History, *, rank: int
) -> Iterator[Logs | None]:
    """Give the trackers for a worker's training, on rank 0; at the block's end all is sent.

    The run has no outcome yet: the driver knows it, also where this process dies.
    """
    if rank > 0:
        yield None
        return
    logs = Logs(config, root)
    status = "failed"
    try:
        yield logs
        status = "trained"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        logs.end({"status": status}, history.steps, history.rewires)
