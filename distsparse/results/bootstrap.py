"""Bootstrap of means: by complete enumeration for few values, by resampling for many."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

# All C(2n - 1, n) resamples of n values are enumerated while they are no more than this: up to n = 7.
MAX_ENUMERATED = 2000
ROWS_AT_ONCE = 4096


def mean_interval(
    values: NDArray[np.float64], *, confidence: float, num_resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the percentile bootstrap interval of each row's mean; (rows, n) → two of (rows,).

    For up to seven values the bootstrap distribution is exact and neither ``num_resamples`` nor ``seed``
    matters. A bound is the lowest mean at which the distribution reaches (1 - confidence) / 2 or its
    complement. Few values make narrow intervals: three give their own range. One value gives NaN.
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.)
    """
    num_rows, n = values.shape
    if n < 2:
        nothing = np.full(num_rows, np.nan)
        return nothing, nothing.copy()
    counts, probabilities = resamples(n, num_resamples=num_resamples, seed=seed)
    tail = (1 - confidence) / 2
    low, high = np.empty(num_rows), np.empty(num_rows)
    for start in range(0, num_rows, ROWS_AT_ONCE):
        part = values[start : start + ROWS_AT_ONCE]
        # Shifted, so that equal values have exactly themselves as every mean.
        means = part[:, :1] + (part - part[:, :1]) @ counts.T / n
        order = np.argsort(means, axis=1)
        reached = np.cumsum(probabilities[order], axis=1)
        for bound, level in ((low, tail), (high, 1 - tail)):
            first = np.argmax(reached >= level - 1e-9, axis=1)
            places = np.take_along_axis(order, first[:, None], axis=1)
            bound[start : start + len(part)] = np.take_along_axis(means, places, axis=1)[:, 0]
    return low, high


def resamples(n: int, *, num_resamples: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how often each of n values is drawn in each resample, (resamples, n), and its probability."""
    if math.comb(2 * n - 1, n) > MAX_ENUMERATED:
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=num_resamples).astype(np.float64)
        return counts, np.full(num_resamples, 1 / num_resamples)
    draws = itertools.combinations_with_replacement(range(n), n)
    counts = np.array([np.bincount(draw, minlength=n) for draw in draws], dtype=np.float64)
    ways = [math.factorial(n) / math.prod(math.factorial(int(c)) for c in row) for row in counts]
    return counts, np.array(ways) / n**n
