"""The few operations on sixty-four entries, beside numpy's on each."""

from __future__ import annotations

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from distsparse.ops.kernels import lanes  # noqa: E402  loads the compiler


@numba.njit
def _flags_at(flags, first):
    return lanes.flags_at(flags, first)


@numba.njit
def _put_flags(word, flags, first):
    lanes.put_flags(word, flags, first)


@numba.njit
def _compared(values, first, low, high, magnitudes):
    return lanes.compared(values, first, low, high, magnitudes)


@numba.njit
def _num_and_first(word):
    return lanes.num_set(word), lanes.first_set(word)


def bits(flags: np.ndarray) -> int:
    """Flag 0 is the lowest bit."""
    return sum(1 << place for place, flag in enumerate(flags) if flag)


@pytest.mark.parametrize("first", [0, 1, 7, 64])
def test_flags_are_the_bits_of_a_word_and_back(first: int) -> None:
    flags = np.random.default_rng(first).integers(0, 2, 160, np.uint8)
    word = _flags_at(flags, first)
    assert word == bits(flags[first : first + 64])
    into = np.full(160, 9, np.uint8)
    _put_flags(np.uint64(word), into, first)
    assert (into[first : first + 64] == flags[first : first + 64]).all()
    assert (into[:first] == 9).all()
    assert (into[first + 64 :] == 9).all()


@pytest.mark.parametrize("magnitudes", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_comparisons_are_those_of_each_value(dtype: type, magnitudes: bool) -> None:
    values = np.random.default_rng(0).normal(0, 3, 200).astype(dtype)
    values[10:14] = 0, 1, -1, 2
    if dtype is not np.int64:
        values[20:24] = np.nan, np.inf, -np.inf, -0.0
    for first in (0, 3, 100):
        part = values[first : first + 64]
        scores = np.abs(part) if magnitudes else part
        for low, high in ((dtype(-1), dtype(1)), (dtype(1), dtype(1)), (dtype(0), dtype(2))):
            above, not_below = _compared(values, first, low, high, magnitudes)
            assert above == bits(scores > high)
            assert not_below == bits(~(scores < low))


@pytest.mark.parametrize("word", [1, 1 << 63, (1 << 64) - 1, 0b101000, 0x8040201008040200])
def test_bits_are_counted_and_the_lowest_found(word: int) -> None:
    num, first = _num_and_first(np.uint64(word))
    assert num == bin(word).count("1")
    assert first == bin(word)[::-1].index("1")
