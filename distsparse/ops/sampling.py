"""How a sample of scores bounds the threshold of a selection."""

from __future__ import annotations

import math

_GOLDEN_RATIO = 0.6180339887498949


def size_for(num_entries: int) -> int:
    """Return how many entries to look at: more would narrow the bounds by less than it costs to draw them."""
    return math.ceil(math.pow(num_entries / 2, 2 / 3))


def stride(num_entries: int) -> int:
    """Return a distance, taken around, that spreads samples evenly and in step with no row or kernel."""
    return int(num_entries * _GOLDEN_RATIO) | 1


def bracket(num_sampled: int, share: float) -> tuple[int, int]:
    """Return ranks in a sample, 1 the best, that nearly always enclose the last of the best ``share``.

    Three standard deviations of a rank to either side, which may be past an end of the sample: over
    ``num_sampled`` or under 1. The lower bound's rank, which is the higher number, comes first.
    """
    rank = share * num_sampled
    margin = 3 * math.sqrt(rank * (1 - share)) + 2
    return math.ceil(rank + margin), math.floor(rank - margin)
