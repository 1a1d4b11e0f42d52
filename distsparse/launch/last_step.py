"""The last step of a run that is to stop: the same on all workers, without a collective in each step."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class _LastStep:
    """Where workers hear that the run is to stop, and agree on the step after which all of them do."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._under_way: dict[str, dict[int, int]] = {}
        self._agreed: dict[str, asyncio.Event] = {}

    async def ask(self) -> None:
        """Let the run stop."""
        self._asked.set()

    async def asked(self) -> None:
        """Wait until the run is to stop."""
        await self._asked.wait()

    async def agree(self, group: str, rank: int, world_size: int, step: int) -> int:
        """Return the latest of the steps that a group's workers have under way, once all have said theirs."""
        steps = self._under_way.setdefault(group, {})
        agreed = self._agreed.setdefault(group, asyncio.Event())
        steps[rank] = step
        if len(steps) == world_size:
            agreed.set()
        await agreed.wait()
        return max(steps.values())


def beside_driver() -> dict[str, Any]:
    """Return options of an actor that takes no CPU, and that no other node's death ends."""
    node = ray.get_runtime_context().get_node_id()
    # A soft affinity is no more than a wish: Ray sends what needs no CPU to any node at all.
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def last_step() -> Any:
    """Start the actor of a run; it ends with its last handle."""
    return ray.remote(_LastStep).options(**beside_driver()).remote()


class Follower:
    """One worker's side.

    A thread waits for the request, so a step costs no message. When it comes, the step under way is said to
    the others, and the loop does not go beyond that step until it knows theirs. None is out of reach: a
    worker cannot end a step before all others have begun it, for it needs their gradients.

    Args:
        actor: see :func:`last_step`.
        group: a name of the workers that train together; those that begin again after a death are another.
        rank: of this worker.
        world_size: number of workers.
        timeout_s: how long to wait for the others.
    """

    def __init__(self, actor: Any, *, group: str, rank: int, world_size: int, timeout_s: float) -> None:
        self._actor = actor
        self._group, self._rank, self._world_size = group, rank, world_size
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._done: int | None = None
        self._holds = False
        self._last: int | None = None

    def stops_after(self, step: int) -> bool:
        """Tell whether a step, which is done, is the last one; all workers get the same answer.

        Raises:
            TimeoutError: not all workers said which step they have under way.
        """
        with self._changed:
            if self._done is None:
                threading.Thread(target=self._listen, daemon=True).start()
            self._done = step
            if not self._changed.wait_for(lambda: not self._holds, self._timeout_s):
                raise TimeoutError(
                    f"asked to stop, worker {self._rank} waited for another one longer than launch.timeout_s"
                )
            return self._last == step

    def _listen(self) -> None:
        try:
            ray.get(self._actor.asked.remote())
            with self._changed:
                assert self._done is not None
                under_way = self._done + 1
                self._holds = True
            last = ray.get(self._actor.agree.remote(self._group, self._rank, self._world_size, under_way))
        except RayError:  # the driver is gone, and Ray ends this process too
            return
        with self._changed:
            self._last, self._holds = last, False
            self._changed.notify_all()
