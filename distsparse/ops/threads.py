"""Work shared out over as many threads as torch's own operations take: whole layers, or parts of one.

To hand something over and to wait for it costs a tenth of a millisecond, as long as a pass over 200,000
entries takes. So layers are handed over whole where there are several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import local
from typing import TypeVar

import torch

T = TypeVar("T")

LEAST = 1 << 18
"""entries of a part below which handing it over costs more than it saves"""
BLOCK = 4096
"""a part begins at a multiple of it"""
LAYERS_AT_ONCE = 3
"""layers that are worked on together, for each takes memory of its size"""

_thread = local()


def in_parts(num: int, work: Callable[[int, int], T]) -> list[T]:
    """Return what ``work`` makes of ranges (first, stop) that cover ``num`` entries, in their order."""
    threads = 1 if _handed_over() else min(torch.get_num_threads(), num // LEAST)
    if threads < 2:
        return [work(0, num)]
    size = -(-num // (threads * BLOCK)) * BLOCK
    ranges = [(first, min(first + size, num)) for first in range(0, num, size)]
    others = [_pool(threads).submit(work, *each) for each in ranges[1:]]
    return [work(*ranges[0]), *(other.result() for other in others)]


def of_each(sizes: Sequence[int], work: Callable[[int], T]) -> list[T]:
    """Return what ``work``, which makes no gradients, makes of each place of ``sizes``, in their order.

    Args:
        sizes: entries of each layer.
        work: must not depend on what it does at another place, nor talk to other processes.

    Raises:
        Exception: what ``work`` raised at the first place at which it did, after all others are done.
    """
    threads = min(torch.get_num_threads(), LAYERS_AT_ONCE, len(sizes), sum(sizes) // LEAST)
    places = range(len(sizes))
    if threads < 2 or _handed_over():
        return [work(place) for place in places]
    found: dict[int, T] = {}
    problems: dict[int, Exception] = {}
    # The largest first, so that all threads end at about the same time.
    turns = iter(sorted(places, key=lambda place: sizes[place], reverse=True))

    def take() -> None:
        _thread.handed_over = True
        try:
            with torch.no_grad():
                for place in turns:
                    try:
                        found[place] = work(place)
                    except Exception as problem:
                        problems[place] = problem
        finally:
            _thread.handed_over = False

    others = [_pool(threads).submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        for _ in turns:  # after an interruption nothing more is begun
            pass
        wait(others)
    if problems:
        raise problems[min(problems)]
    return [found[place] for place in places]


def _handed_over() -> bool:
    """Tell whether this thread works on a layer while others work on others."""
    return getattr(_thread, "handed_over", False)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="distsparse")


# A child of a fork has the pool without its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
