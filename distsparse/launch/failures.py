"""What failed on Ray Train workers, whether another attempt could help, and one line that says so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ray.exceptions import RayError
from ray.train import UserCallback
from ray.train.v2._internal.exceptions import (
    BroadcastCollectiveTimeoutError,
    CollectiveTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from distsparse.dist import TopologyMismatch


class WouldFailAgain(Exception):  # noqa: N818  reads as what happened
    """A worker's error that another attempt would meet too; its text is one line."""


class GiveUp(UserCallback):  # type: ignore[misc]  # ray is untyped
    """End a run at an error that is not a death: by itself, Ray begins again after any error.

    Lives in Ray's controller process, which does not try again after an error of a callback.
    """

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Raise the first worker's error of this kind, if there is one."""
        for rank, error in sorted(worker_exceptions.items()):
            if _is_timeout(error):
                num_workers = run_context.scaling_config.num_workers
                raise ControllerError(WouldFailAgain(_waited(worker_exceptions, num_workers)))
            if not may_pass(error):
                raise ControllerError(WouldFailAgain(_described(rank, error)))


def describe(failures: Mapping[int, Exception]) -> str:
    """Return what happened to the workers, in one line: a death if there is one, not what follows from it."""
    deaths = {rank: error for rank, error in failures.items() if _is_death(error)}
    rank, error = min((deaths or failures).items())
    return _described(rank, error)


def reason(error: TrainingFailedError) -> str:
    """Return why a run failed, in one line."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return describe(error.worker_failures)
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, WouldFailAgain):
        return str(error.controller_failure)
    return f"{type(error).__name__}: {_last_line(error)}"


def may_pass(error: Exception) -> bool:
    """Tell whether an error may come from a process or a machine that went away.

    A connection that a dead worker closed is a RuntimeError on the others; so is a device's failure.
    """
    if isinstance(error, TopologyMismatch) or _is_timeout(error):
        return False
    return _is_death(error) or isinstance(error, (RuntimeError, ConnectionError))


def _is_death(error: Exception) -> bool:
    return isinstance(error, (WorkerHealthCheckFailedError, RayError))


def _is_timeout(error: Exception) -> bool:
    """Tell whether a collective waited in vain; gloo says so in a RuntimeError's text alone."""
    return isinstance(error, CollectiveTimeoutError) or (
        isinstance(error, RuntimeError) and re.search(r"timed out|timeout", str(error), re.I) is not None
    )


def _waited(failures: Mapping[int, Exception], num_workers: int | tuple[int, int]) -> str:
    """Return who waited in vain, and for whom: Ray's barrier says so; else for those who did not wait."""
    waiting = sorted(rank for rank, error in failures.items() if _is_timeout(error))
    first = failures[waiting[0]]
    if isinstance(first, BroadcastCollectiveTimeoutError):
        absent = list(first._missing_ranks)
    elif isinstance(num_workers, int):
        absent = [rank for rank in range(num_workers) if rank not in failures]
    else:  # an elastic run's number is not known here
        absent = []
    whom = "another one"
    if absent:
        whom = f"worker {absent[0]}" if len(absent) == 1 else f"one of the workers {_listed(absent)}"
    who = f"worker {waiting[0]}" if len(waiting) == 1 else f"workers {_listed(waiting)}"
    return f"TimeoutError: {who} waited for {whom} longer than launch.timeout_s"


def _described(rank: int, error: Exception) -> str:
    if _is_death(error):
        what = "node" if "node has died" in str(error) else "process"
        return f"WorkerDied: the {what} of worker {rank} died"
    return f"{type(error).__name__}: {_last_line(error)} (worker {rank})"


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[-1]


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
