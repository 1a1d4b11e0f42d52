"""Work shared out over as many threads as torch's own operations take: compiled passes, and whole layers.

To hand something over and to wait for it costs a tenth of a millisecond, as long as a pass over 200,000
entries takes. So layers are handed over whole, and only a layer that is more than a thread's share of all
is cut into parts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import local
from typing import TypeVar

import torch

T = TypeVar("T")

LEAST = 1 << 18
"""entries of a part below which handing it over costs more than it saves"""
BLOCK = 4096
"""a part begins at a multiple of it"""
LAYERS_AT_ONCE = 4
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
    """Return what ``work``, without gradients, makes of each place of ``sizes``, in their order.

    Args:
        sizes: entries of each layer.
        work: must not depend on what it does at another place, nor talk to other processes.

    Raises:
        Exception: what ``work`` raised at the first place at which it did.
    """
    threads = min(torch.get_num_threads(), LAYERS_AT_ONCE, len(sizes), sum(sizes) // LEAST)
    places = range(len(sizes))
    if threads < 2 or _handed_over():
        return [work(place) for place in places]
    found: dict[int, T] = {}
    problems: dict[int, Exception] = {}

    def at(place: int) -> None:
        try:
            found[place] = work(place)
        except Exception as problem:
            problems[place] = problem

    def take(turns: Iterator[int]) -> None:
        _thread.handed_over = True
        try:
            with torch.no_grad():
                for place in turns:
                    at(place)
        finally:
            _thread.handed_over = False

    share = sum(sizes) / threads
    for place in places:
        if sizes[place] > share:
            at(place)
    # The largest first, so that all threads end at about the same time.
    rest = [place for place in places if sizes[place] <= share]
    turns = iter(sorted(rest, key=lambda place: sizes[place], reverse=True))
    others = [_pool(threads).submit(take, turns) for _ in range(threads - 1)]
    take(turns)
    for other in others:
        other.result()
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
