"""The compiled passes themselves, on flat numpy arrays. Flags are bytes of 0 or 1.

A block at a time, so that what one loop leaves for the next is in the nearest cache; loops without a branch,
so that the compiler makes vector instructions of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from distsparse.ops.kernels.parts import BLOCK as _BLOCK

_F = TypeVar("_F", bound=Callable[..., Any])

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
    offset: int,
    where: Any,
    between: Any,
) -> tuple[int, int]:
    """Flag the candidates above ``high``; list those that are neither above it nor below ``low``.

    With ``fill`` 0 the candidates are the flagged; with 1 the others, and the flagged are chosen too. Indices
    that are listed begin at ``offset``. Return how many are listed, or would be with more room, and chosen.
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
        num = _found(near.view(np.uint64), offset + first, num, scores, where, between)
    return num, num_chosen


@_compiled
def split_magnitudes(
    values: Any,
    flags: Any,
    fill: Any,
    low: Any,
    high: Any,
    chosen: Any,
    offset: int,
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
        num = _found(near.view(np.uint64), offset + first, num, stored, where, between)
    for found in range(min(num, len(where))):
        between[found] = abs(between[found])
    return num, num_chosen


@_compiled
def split_random(
    key: Any, flags: Any, fill: Any, low: Any, high: Any, chosen: Any, offset: int, where: Any, between: Any
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
            scores[place] = np.int64(_mix(_U(offset + first + place) * _GOLDEN + key))
        _flag(scores[: stop - first], flags[first:stop], fill, low, high, chosen[first:stop], near)
        num_chosen += _num_set(chosen[first:stop])
        num = _found(near.view(np.uint64), offset + first, num, scores, where, between)
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
def settle(where: Any, scores: Any, threshold: Any, rest: int, chosen: Any) -> bool:
    """Flag the best ``rest``, of which the threshold is the last, ties in order; False where one is NaN."""
    ties = rest
    for place in range(len(scores)):
        if not (scores[place] <= threshold):
            if scores[place] != scores[place]:
                return False
            ties -= 1
    for place in range(len(scores)):
        tied = scores[place] == threshold
        if tied:
            ties -= 1
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
