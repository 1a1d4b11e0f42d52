"""The compiled passes themselves, on flat numpy arrays. Flags are bytes of 0 or 1.

A block at a time, so that what one loop leaves for the next is in the nearest cache; loops without a branch,
so that the compiler makes vector instructions of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

# numba's files on disk follow this file alone: what it takes from these two is compiled anew with it only.
from distsparse.ops import sampling
from distsparse.ops.threads import BLOCK as _BLOCK

_F = TypeVar("_F", bound=Callable[..., Any])

_BINS = 1024
"""of a selection's histogram"""
_FEW = 48
"""values that are sorted in less time than it takes to divide them into bins"""

_U = np.uint64
_GOLDEN = _U(0x9E3779B97F4A7C15)
_MIX_1 = _U(0xBF58476D1CE4E5B9)
_MIX_2 = _U(0x94D049BB133111EB)
_GATHER = _U(0x0102040810204080)
_COPIES = _U(0x0101010101010101)
_DIAGONAL = _U(0x8040201008040201)
_CARRY = _U(0x7F7F7F7F7F7F7F7F)
_PAIRS = _U(0x00FF00FF00FF00FF)
_ADDED = _U(0x0001000100010001)


def _compiled(function: _F) -> _F:
    """Compile for the types of the first call, and keep the outcome on disk for later processes."""
    try:
        return cast(_F, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # no folder to write it to
        return cast(_F, numba.njit(nogil=True)(function))


_size_for, _stride = _compiled(sampling.size_for), _compiled(sampling.stride)
_bracket = _compiled(sampling.bracket)


@_compiled
def _found(near: Any, first: int, num: int, scores: Any, where: Any, between: Any) -> int:
    """Append index and score of the flags in a block, looked at eight at a time; return the new number."""
    for eight in range(len(near)):
        flags = near[eight]
        if flags != _U(0):
            for place in range(8):
                if (flags >> _U(8 * place)) & _U(1):
                    index = 8 * eight + place
                    if num < len(where):
                        where[num] = first + index
                        between[num] = scores[index]
                    num += 1
    return num


@_compiled
def _num_set(flags: Any) -> int:
    """Return how many flags of a block are set: eight at a time, each in a byte that 128 cannot overflow."""
    whole = len(flags) & -8
    words = flags[:whole].view(np.uint64)
    num = _U(0)
    for first in range(0, len(words), 128):
        sums = _U(0)
        for word in words[first : first + 128]:
            sums += word
        pairs = (sums & _PAIRS) + ((sums >> _U(8)) & _PAIRS)
        num += (pairs * _ADDED) >> _U(48)
    for place in range(whole, len(flags)):
        num += _U(flags[place])
    return int(num)


@_compiled
def split(
    values: Any,
    flags: Any,
    fill: Any,
    low: Any,
    high: Any,
    chosen: Any,
    where: Any,
    between: Any,
) -> tuple[int, int]:
    """Flag the candidates above ``high``; list those that are neither above it nor below ``low``.

    With ``fill`` 0 the candidates are the flagged; with 1 the others, and the flagged are chosen too. Return
    how many are listed, or would be with more room, and how many chosen.
    """
    near = np.zeros(_BLOCK, np.uint8)
    num = num_chosen = 0
    for first in range(0, len(flags), _BLOCK):
        stop = min(first + _BLOCK, len(flags))
        if stop - first < _BLOCK:
            near[:] = 0
        scores = values[first:stop]
        _flag(scores, flags[first:stop], fill, low, high, chosen[first:stop], near)
        num_chosen += _num_set(chosen[first:stop])
        num = _found(near.view(np.uint64), first, num, scores, where, between)
    return num, num_chosen


@_compiled
def split_magnitudes(
    values: Any,
    flags: Any,
    fill: Any,
    low: Any,
    high: Any,
    chosen: Any,
    where: Any,
    between: Any,
) -> tuple[int, int]:
    """The same by magnitude."""
    near = np.zeros(_BLOCK, np.uint8)
    num = num_chosen = 0
    for first in range(0, len(flags), _BLOCK):
        stop = min(first + _BLOCK, len(flags))
        if stop - first < _BLOCK:
            near[:] = 0
        stored = values[first:stop]
        _flag_magnitudes(stored, flags[first:stop], fill, low, high, chosen[first:stop], near)
        num_chosen += _num_set(chosen[first:stop])
        num = _found(near.view(np.uint64), first, num, stored, where, between)
    for found in range(min(num, len(where))):
        between[found] = abs(between[found])
    return num, num_chosen


@_compiled
def num_above(values: Any, flags: Any, low: Any, high: Any, between: Any) -> tuple[int, int]:
    """List flagged magnitudes that are neither above ``high`` nor below ``low``.

    Return how many these are, or would be with more room, and how many are above.
    """
    chosen, near = np.empty(_BLOCK, np.uint8), np.zeros(_BLOCK, np.uint8)
    where = np.empty(_BLOCK, np.int64)
    num = num_chosen = 0
    for first in range(0, len(flags), _BLOCK):
        stop = min(first + _BLOCK, len(flags))
        if stop - first < _BLOCK:
            near[:] = 0
        stored, above = values[first:stop], chosen[: stop - first]
        _flag_magnitudes(stored, flags[first:stop], np.uint8(0), low, high, above, near)
        num_chosen += _num_set(above)
        listed = between[min(num, len(between)) :]
        num += _found(near.view(np.uint64), 0, 0, stored, where[: len(listed)], listed)
    for found in range(min(num, len(between))):
        between[found] = abs(between[found])
    return num, num_chosen


@_compiled
def split_random(
    key: Any, flags: Any, fill: Any, low: Any, high: Any, chosen: Any, where: Any, between: Any
) -> tuple[int, int]:
    """The same by the key's random bits at each place."""
    near = np.zeros(_BLOCK, np.uint8)
    scores = np.empty(_BLOCK, np.int64)
    num = num_chosen = 0
    for first in range(0, len(flags), _BLOCK):
        stop = min(first + _BLOCK, len(flags))
        if stop - first < _BLOCK:
            near[:] = 0
        for place in range(stop - first):
            scores[place] = np.int64(_mix(_U(first + place) * _GOLDEN + key))
        _flag(scores[: stop - first], flags[first:stop], fill, low, high, chosen[first:stop], near)
        num_chosen += _num_set(chosen[first:stop])
        num = _found(near.view(np.uint64), first, num, scores, where, between)
    return num, num_chosen


@_compiled
def sample_magnitudes(values: Any, flags: Any, fill: Any, step: int, found: Any) -> int:
    """Write the magnitudes of sampled candidates; return their number."""
    num = place = 0
    for _ in range(len(found)):
        found[num] = abs(values[place])
        num += flags[place] ^ fill
        place += step
        if place >= len(flags):
            place -= len(flags)
    return num


@_compiled
def sample_random(key: Any, flags: Any, fill: Any, step: int, found: Any) -> int:
    """The same of the key's random bits."""
    num = place = 0
    for _ in range(len(found)):
        found[num] = np.int64(_mix(_U(place) * _GOLDEN + key))
        num += flags[place] ^ fill
        place += step
        if place >= len(flags):
            place -= len(flags)
    return num


@_compiled
def best_magnitudes(
    values: Any,
    flags: Any,
    fill: Any,
    k: int,
    num_flagged: int,
    ends: Any,
    chosen: Any,
    where: Any,
    between: Any,
) -> bool:
    """Flag the ``k`` candidates of the largest magnitudes, and with ``fill`` what is flagged.

    ``ends`` are the least and the largest number that there is. False where a quick look does not decide it:
    with a NaN among the candidates, or if the sample was misleading.
    """
    sample = np.empty(_size_for(len(flags)), values.dtype)
    num_sampled = sample_magnitudes(values, flags, fill, _stride(len(flags)), sample)
    num_open = len(flags) - num_flagged if fill else num_flagged
    known, low, high = _bounds(sample[:num_sampled], k / num_open, ends)
    if not known:
        return False
    num, num_chosen = split_magnitudes(values, flags, fill, low, high, chosen, where, between)
    rest = k - num_chosen + (num_flagged if fill else 0)
    return num <= len(where) and _settle(where[:num], between[:num], rest, chosen)


@_compiled
def best_random(
    key: Any,
    flags: Any,
    fill: Any,
    k: int,
    num_flagged: int,
    ends: Any,
    chosen: Any,
    where: Any,
    between: Any,
) -> bool:
    """The same by the key's random bits at each place."""
    sample = np.empty(_size_for(len(flags)), np.int64)
    num_sampled = sample_random(key, flags, fill, _stride(len(flags)), sample)
    num_open = len(flags) - num_flagged if fill else num_flagged
    known, low, high = _bounds(sample[:num_sampled], k / num_open, ends)
    if not known:
        return False
    num, num_chosen = split_random(key, flags, fill, low, high, chosen, where, between)
    rest = k - num_chosen + (num_flagged if fill else 0)
    return num <= len(where) and _settle(where[:num], between[:num], rest, chosen)


@_compiled
def _bounds(sample: Any, share: float, ends: Any) -> tuple[bool, Any, Any]:
    """Return if no score is NaN, and bounds that nearly always hold the least of the best ``share``."""
    low_rank, high_rank = _bracket(len(sample), share)
    known_low, low = kth_largest(sample, low_rank) if low_rank <= len(sample) else (True, ends[0])
    known_high, high = kth_largest(sample, high_rank) if high_rank >= 1 else (True, ends[1])
    return known_low and known_high, low, high


@_compiled
def kth_largest(values: Any, k: int) -> tuple[bool, Any]:
    """Return if it is known, and the ``k``-th largest value, 1 ≤ k ≤ their number.

    It is not with a NaN, nor in a range for which no bins can be made. The bin in which the value lies is
    divided again, until that holds few. Bins are of float64, whose rounding keeps the order of all values.
    """
    within = values.copy()
    counts = np.empty(_BINS + 2, np.int64)
    while True:
        least = most = within[0]
        for value in within:
            if value != value:
                return False, value
            least, most = min(least, value), max(most, value)
        if least == most:
            return True, least
        if len(within) <= _FEW:
            return True, _kth_of_few(within, k)
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
        num = 0
        for value in within:
            if int((np.float64(value) - first) * scale) == bin_:
                within[num] = value
                num += 1
        within = within[:num]


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
        if scores[place] > threshold or (tied and ties >= 0):
            chosen[where[place]] = 1
    return True


@_compiled
def _flag(scores: Any, flags: Any, fill: Any, low: Any, high: Any, chosen: Any, near: Any) -> None:
    for place in range(len(scores)):
        score, open_ = scores[place], flags[place] ^ fill
        above = score > high
        chosen[place] = (open_ & np.uint8(above)) | (flags[place] & fill)
        # A NaN is below nothing, and so is found.
        near[place] = open_ & np.uint8(not above) & np.uint8(not (score < low))


@_compiled
def _flag_magnitudes(values: Any, flags: Any, fill: Any, low: Any, high: Any, chosen: Any, near: Any) -> None:
    for place in range(len(values)):
        score, open_ = abs(values[place]), flags[place] ^ fill
        above = score > high
        chosen[place] = (open_ & np.uint8(above)) | (flags[place] & fill)
        near[place] = open_ & np.uint8(not above) & np.uint8(not (score < low))


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
def unpack(words: Any, eights: Any) -> None:
    """Undo :func:`pack`: give each bit a byte, as words of eight."""
    for word in range(len(words)):
        for byte in range(8):
            copies = ((words[word] >> _U(8 * byte)) & _U(0xFF)) * _COPIES
            eights[8 * word + byte] = (((copies & _DIAGONAL) + _CARRY) >> _U(7)) & _COPIES


@_compiled
def pack(eights: Any, before: Any, words: Any, first_word: Any) -> tuple[Any, Any, Any, Any]:
    """Pack flags, given as words of eight, to a bit each; count those set, those before, those changed."""
    num, num_before, num_changed, digest = _U(0), _U(0), _U(0), _U(0)
    for word in range(len(words)):
        packed, old = _U(0), _U(0)
        for byte in range(8):
            shift = _U(8 * byte)
            packed |= ((eights[8 * word + byte] * _GATHER) >> _U(56)) << shift
            old |= ((before[8 * word + byte] * _GATHER) >> _U(56)) << shift
        words[word] = packed
        num += _ones(packed)
        num_before += _ones(old)
        num_changed += _ones(packed ^ old)
        digest += _mix(packed ^ _mix(_U(word) + first_word))
    return num, num_before, num_changed, digest


@_compiled
def _ones(word: Any) -> Any:
    """Return how many bits of a word are set; compilers know this form."""
    word = word - ((word >> _U(1)) & _U(0x5555555555555555))
    word = (word & _U(0x3333333333333333)) + ((word >> _U(2)) & _U(0x3333333333333333))
    word = (word + (word >> _U(4))) & _U(0x0F0F0F0F0F0F0F0F)
    return (word * _U(0x0101010101010101)) >> _U(56)


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
