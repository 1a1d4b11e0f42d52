"""The compiled passes themselves, on flat numpy arrays. Flags are bytes of 0 or 1.

A selection goes over 64 entries at once, see :mod:`~distsparse.ops.kernels.lanes`; what zeroes, over a block
at a time, so that what one loop leaves for the next is in the nearest cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.extending import overload

# numba's files on disk follow this file alone: what it takes from these is compiled anew with it only.
from distsparse.ops import sampling
from distsparse.ops.kernels.lanes import LANES, compared, first_set, flags_at, num_set, put_flags
from distsparse.ops.threads import BLOCK as _BLOCK

_F = TypeVar("_F", bound=Callable[..., Any])

TAKEN_IN = 432571780
"""checksum of lanes.py and sampling.py, which a test compares: a change there is one here"""
_BINS = 1024
"""of a selection's histogram"""
_FEW = 48
"""values that are sorted in less time than it takes to divide them into bins"""

_U = np.uint64
_GOLDEN = _U(0x9E3779B97F4A7C15)
_MIX_1 = _U(0xBF58476D1CE4E5B9)
_MIX_2 = _U(0x94D049BB133111EB)


def _compiled(function: _F) -> _F:
    """Compile for the types of the first call, and keep the outcome on disk for later processes."""
    try:
        return cast(_F, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # no folder to write it to
        return cast(_F, numba.njit(nogil=True)(function))


_size_for, _stride = _compiled(sampling.size_for), _compiled(sampling.stride)
_bracket = _compiled(sampling.bracket)


@_compiled
def split(
    source: Any,
    magnitudes: bool,
    flags: Any,
    fill: bool,
    low: Any,
    high: Any,
    chosen: Any,
    where: Any,
    between: Any,
) -> tuple[int, int]:
    """Flag the candidates above ``high``; list those that are neither above it nor below ``low``.

    Scores are an array's values or ``magnitudes``, or a key's random bits. The candidates are the flagged; to
    ``fill`` the others, and the flagged are chosen too. Return how many are listed, or would be with more
    room, and how many chosen.
    """
    buffer = _buffer(source)
    taken = _U(0) - _U(fill)
    num, num_chosen = 0, _U(0)
    whole = len(flags) & -LANES
    for first in range(0, whole, LANES):
        scores, at = _scores(source, first, buffer)
        best, near = _divided(scores, at, magnitudes, flags_at(flags, first), taken, low, high)
        put_flags(best, chosen, first)
        num_chosen += num_set(best)
        while near:
            lane = first_set(near)
            near &= near - _U(1)
            if num < len(where):
                where[num], between[num] = first + lane, _magnitude(scores[at + lane], magnitudes)
            num += 1
    for place in range(whole, len(flags)):
        score = _magnitude(_score(source, place), magnitudes)
        open_ = (flags[place] != 0) != fill
        best_, near_ = open_ and score > high, open_ and not score > high and not score < low
        chosen[place] = best_ or (fill and not open_)
        num_chosen += _U(chosen[place])
        if near_:
            if num < len(where):
                where[num], between[num] = place, score
            num += 1
    return num, int(num_chosen)


@_compiled
def num_above(values: Any, flags: Any, low: Any, high: Any, between: Any) -> tuple[int, int]:
    """List flagged magnitudes that are neither above ``high`` nor below ``low``.

    Return how many these are, or would be with more room, and how many are above.
    """
    num, num_over = 0, _U(0)
    whole = len(flags) & -LANES
    for first in range(0, whole, LANES):
        over, near = _divided(values, first, True, flags_at(flags, first), _U(0), low, high)
        num_over += num_set(over)
        while near:
            if num < len(between):
                between[num] = abs(values[first + first_set(near)])
            near &= near - _U(1)
            num += 1
    for place in range(whole, len(flags)):
        score = abs(values[place])
        num_over += _U(flags[place] != 0 and score > high)
        if flags[place] and not score > high and not score < low:
            if num < len(between):
                between[num] = score
            num += 1
    return num, int(num_over)


@_compiled
def _divided(
    scores: Any, at: int, magnitudes: bool, flags: Any, taken: Any, low: Any, high: Any
) -> tuple[Any, Any]:
    """Return the bits of what is chosen and of what may be, of one word's flags."""
    above, not_below = compared(scores, at, low, high, magnitudes)
    open_ = flags ^ taken
    # A NaN is below nothing, and so is found.
    return (open_ & above) | (flags & taken), open_ & ~above & not_below


@_compiled
def sample(source: Any, magnitudes: bool, flags: Any, fill: bool, step: int, found: Any) -> int:
    """Write the scores of sampled candidates; return their number."""
    places = np.empty(len(found) + 1, np.int64)
    num = place = 0
    for _ in range(len(found)):
        places[num] = place
        num += (flags[place] != 0) != fill
        place += step
        if place >= len(flags):
            place -= len(flags)
    for drawn in range(num):  # of few candidates few scores are read
        found[drawn] = _magnitude(_score(source, places[drawn]), magnitudes)
    return num


@_compiled
def best(
    source: Any,
    magnitudes: bool,
    flags: Any,
    fill: bool,
    k: int,
    num_flagged: int,
    ends: Any,
    chosen: Any,
    where: Any,
    between: Any,
) -> bool:
    """Flag the ``k`` candidates of the best scores, see :func:`split`, and to ``fill`` what is flagged.

    ``ends`` are the least and the largest number that there is. False where a quick look does not decide it:
    with a NaN among the candidates, or if the sample was misleading.
    """
    drawn = np.empty(_size_for(len(flags)), between.dtype)
    num_drawn = sample(source, magnitudes, flags, fill, _stride(len(flags)), drawn)
    num_open = len(flags) - num_flagged if fill else num_flagged
    known, low, high = _bounds(drawn[:num_drawn], k / num_open, ends)
    if not known:
        return False
    num, num_chosen = split(source, magnitudes, flags, fill, low, high, chosen, where, between)
    rest = k - num_chosen + (num_flagged if fill else 0)
    return num <= len(where) and _settle(where[:num], between[:num], rest, chosen)


@_compiled
def _bounds(drawn: Any, share: float, ends: Any) -> tuple[bool, Any, Any]:
    """Return if no score is NaN, and bounds that nearly always hold the least of the best ``share``."""
    low_rank, high_rank = _bracket(len(drawn), share)
    known_low, low = kth_largest(drawn, low_rank) if low_rank <= len(drawn) else (True, ends[0])
    known_high, high = kth_largest(drawn, high_rank) if high_rank >= 1 else (True, ends[1])
    return known_low and known_high, low, high


@_compiled
def kth_largest(values: Any, k: int) -> tuple[bool, Any]:
    """Return if it is known, and the ``k``-th largest value, 1 ≤ k ≤ their number.

    It is not with a NaN, nor in a range for which no bins can be made. The bin in which the value lies is
    divided again, until that holds few. Bins are of float64, whose rounding keeps the order of all values.
    """
    within = values
    counts = np.empty(_BINS + 2, np.int64)
    for value in within:
        if value != value:
            return False, value
    while True:
        least = most = within[0]
        for value in within:
            least, most = min(least, value), max(most, value)
        if least == most:
            return True, least
        if len(within) <= _FEW:
            return True, _kth_of_few(within.copy(), k)
        first, width = np.float64(least), np.float64(most) - np.float64(least)
        scale = _BINS / width if width > 0 else np.inf
        if not 0 < scale < np.inf:
            return False, least
        counts[:] = 0
        for value in within:
            counts[int((np.float64(value) - first) * scale)] += 1
        bin_ = _BINS + 1
        while counts[bin_] < k:
            k -= counts[bin_]
            bin_ -= 1
        num, rest = 0, np.empty(counts[bin_] + 1, within.dtype)
        for value in within:
            rest[num] = value
            num += int((np.float64(value) - first) * scale) == bin_
        within = rest[:num]


@_compiled
def _kth_of_few(values: Any, k: int) -> Any:
    """Return the ``k``-th largest after a sort by insertion."""
    for place in range(1, len(values)):
        value, before = values[place], place
        while before > 0 and values[before - 1] < value:
            values[before] = values[before - 1]
            before -= 1
        values[before] = value
    return values[k - 1]


@_compiled
def _settle(where: Any, scores: Any, rest: int, chosen: Any) -> bool:
    """Flag the best ``rest``, ties in order; False where one is NaN, or where there are not as many."""
    if not 0 < rest <= len(scores):
        return False
    known, threshold = kth_largest(scores, rest)
    if not known:
        return False
    ties = rest
    for score in scores:
        ties -= score > threshold
    for place in range(len(scores)):
        tied = scores[place] == threshold
        ties -= tied
        chosen[where[place]] = scores[place] > threshold or (tied and ties >= 0)
    return True


@_compiled
def _magnitude(score: Any, magnitudes: bool) -> Any:
    return abs(score) if magnitudes else score


def _score(source: Any, place: int) -> Any:
    """Return one score of a source: an array's value, or a key's random bits."""


def _scores(source: Any, first: int, buffer: Any) -> tuple[Any, int]:
    """Return an array with the scores at ``first`` and after, and their place in it."""
    raise NotImplementedError  # compiled code has one of the functions below, by its type


def _buffer(source: Any) -> Any:
    """Return room for the scores that are made."""


@overload(_score, strict=False)
def _typed_score(source: Any, place: Any) -> Any:
    if isinstance(source, numba.types.Array):
        return lambda source, place: source[place]
    return lambda source, place: np.int64(_mix(_U(place) * _GOLDEN + source))


@overload(_scores, strict=False)
def _typed_scores(source: Any, first: Any, buffer: Any) -> Any:
    if isinstance(source, numba.types.Array):
        return lambda source, first, buffer: (source, first)

    def made(source: Any, first: int, buffer: Any) -> tuple[Any, int]:
        for lane in range(LANES):
            buffer[lane] = np.int64(_mix(_U(first + lane) * _GOLDEN + source))
        return buffer, 0

    return made


@overload(_buffer, strict=False)
def _typed_buffer(source: Any) -> Any:
    if isinstance(source, numba.types.Array):
        return lambda source: source
    return lambda source: np.empty(LANES, np.int64)


@_compiled
def _mix(word: Any) -> Any:
    """SplitMix64's finalizer, see ``counter_rng.mix``."""
    word = (word ^ (word >> _U(30))) * _MIX_1
    word = (word ^ (word >> _U(27))) * _MIX_2
    return word ^ (word >> _U(31))


@_compiled
def keep(flags: Any, tensors: Any) -> None:
    """Clear the integers of each tensor where a flag is 0."""
    for first in range(0, len(flags), _BLOCK):
        near = flags[first : first + _BLOCK]
        for bits in tensors:
            _keep(near, bits[first : first + _BLOCK])


@_compiled
def _keep(flags: Any, bits: Any) -> None:
    for place in range(len(flags)):
        bits[place] &= -bits.dtype.type(flags[place])


@_compiled
def unpack(words: Any, flags: Any) -> None:
    """Undo :func:`pack`: give each bit a byte."""
    for word in range(len(words)):
        put_flags(words[word], flags, LANES * word)


@_compiled
def pack(flags: Any, before: Any, words: Any, first_word: Any) -> tuple[Any, Any, Any, Any]:
    """Pack flags to a bit each; count those set, those set before, those changed."""
    num, num_before, num_changed, digest = _U(0), _U(0), _U(0), _U(0)
    for word in range(len(words)):
        packed, old = flags_at(flags, LANES * word), flags_at(before, LANES * word)
        words[word] = packed
        num += num_set(packed)
        num_before += num_set(old)
        num_changed += num_set(packed ^ old)
        digest += _mix(packed ^ _mix(_U(word) + first_word))
    return num, num_before, num_changed, digest


@_compiled
def spread(values: Any, index: Any, into: Any) -> None:
    """Write values at ascending indices and zeros everywhere else, a block at a time."""
    num = 0
    for first in range(0, len(into), _BLOCK):
        stop = min(first + _BLOCK, len(into))
        into[first:stop] = 0
        while num < len(index) and index[num] < stop:
            into[index[num]] = values[num]
            num += 1
