"""A compiled pass shared out over as many threads as torch's own operations take."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")

LEAST = 1 << 18
"""entries of a part below which handing it over costs more than it saves"""
BLOCK = 4096
"""a part begins at a multiple of it"""


def in_parts(num: int, work: Callable[[int, int], T]) -> list[T]:
    """Return what ``work`` makes of ranges (first, stop) that cover ``num`` entries, in their order."""
    threads = min(torch.get_num_threads(), num // LEAST)
    if threads < 2:
        return [work(0, num)]
    size = -(-num // (threads * BLOCK)) * BLOCK
    ranges = [(first, min(first + size, num)) for first in range(0, num, size)]
    others = [_pool(threads).submit(work, *each) for each in ranges[1:]]
    return [work(*ranges[0]), *(other.result() for other in others)]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="distsparse")


# A child of a fork has the pool without its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
