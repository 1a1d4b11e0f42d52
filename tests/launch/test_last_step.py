"""Workers in lock-step agree on the step that they stop after, whenever they are asked."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("ray")

import ray

from distsparse.launch.last_step import Follower, last_step

pytestmark = pytest.mark.slow

STEPS = 100_000
"""many more than until the request arrives"""


@pytest.fixture
def actor(ray_session: None) -> Iterator[Any]:
    """An actor whose process has started."""
    started = last_step()
    ray.get(started.agree.remote("alone", 0, 1, 1))
    yield started
    ray.kill(started)


class Worker:
    """Makes steps that end after all workers have begun them, as an all-reduce does."""

    def __init__(self, follower: Follower, everyone: threading.Barrier, seed: int) -> None:
        self._follower, self._everyone = follower, everyone
        self._random = random.Random(seed)
        self.begun = 0

    def train(self) -> int:
        """Return the last step."""
        for step in range(1, STEPS + 1):
            self.begun = step
            time.sleep(self._random.random() * 0.004)
            self._everyone.wait(60)
            if step < STEPS and self._follower.stops_after(step):
                return step
        return STEPS


@pytest.mark.parametrize("seed", range(8))
def test_all_stop_after_a_step_that_was_under_way(actor: Any, seed: int) -> None:
    everyone = threading.Barrier(3)
    workers = [
        Worker(
            Follower(actor, group="first", rank=rank, world_size=3, timeout_s=60), everyone, 3 * seed + rank
        )
        for rank in range(3)
    ]
    with ThreadPoolExecutor(3) as pool:
        last = [pool.submit(worker.train) for worker in workers]
        while workers[0].begun < 4 * seed:  # for the first seeds before a thread listens, or at once
            time.sleep(0.001)
        at_least = min(worker.begun for worker in workers)
        actor.ask.remote()
        steps = {worker.result() for worker in last}
    assert len(steps) == 1
    assert at_least <= steps.pop() < STEPS


def test_workers_that_begin_again_agree_anew(actor: Any) -> None:
    actor.ask.remote()
    for group, world_size in (("first", 2), ("second", 1)):
        everyone = threading.Barrier(world_size)
        followers = [
            Follower(actor, group=group, rank=rank, world_size=world_size, timeout_s=60)
            for rank in range(world_size)
        ]
        with ThreadPoolExecutor(world_size) as pool:
            steps = list(pool.map(lambda one: Worker(one, everyone, 0).train(), followers))  # noqa: B023
        assert len(set(steps)) == 1
        assert steps[0] < STEPS


def test_worker_that_does_not_answer_ends_the_wait(actor: Any) -> None:
    alone = Follower(actor, group="first", rank=0, world_size=2, timeout_s=1.5)
    assert not alone.stops_after(1)
    actor.ask.remote()

    def go_on() -> None:
        for step in range(2, 10_000):
            time.sleep(0.01)
            alone.stops_after(step)

    with pytest.raises(TimeoutError, match=r"worker 0 waited for another one longer than launch\.timeout_s"):
        go_on()
