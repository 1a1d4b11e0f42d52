"""Which failures of workers are tried again, and what is said of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import BroadcastCollectiveTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from distsparse.dist import TopologyMismatch
from distsparse.launch.failures import GiveUp, describe, reason

DEATH = WorkerHealthCheckFailedError("a worker died", ActorDiedError())
CONNECTION = RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1")
WAITED = RuntimeError("[unbound_buffer.cc:79] Timed out waiting 5000ms for recv operation to complete")


def workers(count: int | tuple[int, int]) -> SimpleNamespace:
    """The part of Ray's context of a run that says how many workers it has."""
    return SimpleNamespace(scaling_config=SimpleNamespace(num_workers=count))


@pytest.mark.parametrize("failures", [{1: DEATH}, {0: CONNECTION}, {0: CONNECTION, 1: DEATH}])
def test_tried_again(failures: dict[int, Exception]) -> None:
    GiveUp().after_exception(workers(2), failures)  # what it raises is not tried again


@pytest.mark.parametrize(
    ("failures", "line"),
    [
        ({0: CONNECTION, 1: ValueError("first\nlast")}, "ValueError: last (worker 1)"),
        ({0: TopologyMismatch("at step 6")}, "TopologyMismatch: at step 6 (worker 0)"),
        ({1: FloatingPointError("the loss is nan")}, "FloatingPointError: the loss is nan (worker 1)"),
        ({0: OSError(28, "No space left")}, "OSError: [Errno 28] No space left (worker 0)"),
        ({0: WAITED}, "TimeoutError: worker 0 waited for worker 1 longer than launch.timeout_s"),
        (
            {1: BroadcastCollectiveTimeoutError(5.0, [0], 5.0)},
            "TimeoutError: worker 1 waited for worker 0 longer than launch.timeout_s",
        ),
    ],
)
def test_would_come_again(failures: dict[int, Exception], line: str) -> None:
    with pytest.raises(ControllerError) as caught:
        GiveUp().after_exception(workers(2), failures)
    assert reason(caught.value) == line


@pytest.mark.parametrize(
    ("num_workers", "failures", "line"),
    [
        (4, {0: WAITED, 1: WAITED, 3: WAITED}, "workers 0, 1, 3 waited for worker 2"),
        (4, {0: WAITED, 3: CONNECTION}, "worker 0 waited for one of the workers 1, 2"),
        (2, {0: WAITED, 1: WAITED}, "workers 0, 1 waited for another one"),
        ((1, 4), {0: WAITED}, "worker 0 waited for another one"),
    ],
)
def test_straggler_is_named_where_it_is_known(
    num_workers: int | tuple[int, int], failures: dict[int, Exception], line: str
) -> None:
    with pytest.raises(ControllerError) as caught:
        GiveUp().after_exception(workers(num_workers), failures)
    assert reason(caught.value) == f"TimeoutError: {line} longer than launch.timeout_s"


def test_death_is_named_before_what_follows_from_it() -> None:
    both = {0: CONNECTION, 1: DEATH}
    assert describe(both) == "WorkerDied: the process of worker 1 died"
    assert reason(WorkerGroupError("both", both)) == describe(both)
    assert describe({0: CONNECTION}).startswith("RuntimeError: [pair.cc:534] Connection closed by peer")


def test_death_of_a_node() -> None:
    error = WorkerHealthCheckFailedError("a worker died", RuntimeError("because its node has died."))
    assert describe({1: error}) == "WorkerDied: the node of worker 1 died"
