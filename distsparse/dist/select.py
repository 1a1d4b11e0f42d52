"""Exact selection where every rank holds some of the candidates, in the order of :mod:`distsparse.ops.select`.

No score travels. Scores become integers in the same order; histograms of their highest bits, summed over
ranks, tell in which bin the threshold lies; then those of the next bits of what is in that bin, and so on.
A tie at the threshold goes to the lower rank, then to the lower index: ranks hold ranges in their order, so
that is the lower index of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distsparse.dist.comm import Comm
from distsparse.ops.flags import count, places
from distsparse.ops.ordered import ordered, width
from distsparse.ops.select import Scored, Scores, flat_scores

_DIGIT = 12
"""bits of a histogram: 32 kB, three rounds for float32"""
_CACHED = 1 << 17
"""candidates whose scores fit into a core's cache"""


def top_k_mask(score: Tensor | Scores, k: int, candidates: Tensor, comm: Comm) -> Tensor:
    """Return which of this rank's candidates are among the ``k`` best of all ranks'. All ranks must call it.

    Arguments are those of :func:`distsparse.ops.select.top_k_mask`, for the candidates held here.

    Raises:
        FloatingPointError: a candidate's score is NaN, on any rank; raised on all.
    """
    part = flat_scores((score, candidates))
    counts, shift = _first_histogram([lambda: part], comm)
    num_open = int(counts.sum())
    assert 0 <= k <= num_open, f"cannot select {k} of {num_open} candidates"
    if k in (0, num_open):
        return candidates.clone() if k else torch.zeros_like(candidates)
    digit, rest = _digit_of(counts, k)
    chosen, where, keys = _split(part, digit, shift)
    best = _narrowed(keys, rest, shift, comm)
    before = sum(int(num) for num in comm.gather(_number(len(best.tied), chosen))[: comm.rank])
    ties = best.tied[: max(best.rest - before, 0)]
    for index in (best.above, ties):
        chosen[where[index]] = True
    return chosen.reshape(candidates.shape)


def top_k_counts(parts: Sequence[Callable[[], Scored]], k: int, comm: Comm) -> list[int]:
    """Return how many of the ``k`` best candidates of all parts and ranks lie in each part.

    Ties go to the earlier part. Each part is made twice. All ranks must call it.

    Raises:
        FloatingPointError: a candidate's score is NaN, on any rank; raised on all.
    """
    counts, shift = _first_histogram(parts, comm)
    num_open = int(counts.sum())
    assert 0 <= k <= num_open, f"cannot select {k} of {num_open} candidates"
    if k == 0:
        return [0] * len(parts)
    digit, rest = _digit_of(counts, k)
    num_chosen, keys = [], []
    for part in parts:
        chosen, _, undecided = _split(flat_scores(part()), digit, shift)
        num_chosen.append(count(chosen))
        keys.append(undecided)
    best = _narrowed(torch.cat(keys), rest, shift, comm)
    sizes = torch.tensor([len(part) for part in keys], device=keys[0].device)
    owner = torch.arange(len(parts), device=sizes.device).repeat_interleave(sizes)

    def in_each(index: Tensor) -> Tensor:
        return torch.bincount(owner[index], minlength=len(parts))

    above = torch.tensor(num_chosen, device=sizes.device) + in_each(best.above)
    found, tied = comm.sum(torch.stack([above, in_each(best.tied)])).tolist()
    rest = best.rest
    for number, num_tied in enumerate(tied):
        taken = min(rest, num_tied)
        found[number] += taken
        rest -= taken
    return [int(num) for num in found]


def _number(value: int, like: Tensor) -> Tensor:
    return torch.tensor([value], device=like.device)


def _pieces(part: tuple[Scores, Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (start, scores, flags of candidates) of ranges: small ones on a CPU, where they stay in the cache."""
    scores, open_ = part
    size = _CACHED if open_.device.type == "cpu" else max(len(open_), 1)
    for start in range(0, len(open_), size):
        stop = min(start + size, len(open_))
        yield start, scores(slice(start, stop)), open_[start:stop]


def _first_histogram(parts: Sequence[Callable[[], Scored]], comm: Comm) -> tuple[Tensor, int]:
    """Return how many candidates of all parts and ranks have each highest digit, and the bits below it.

    Raises:
        FloatingPointError: a candidate's score is NaN.
    """
    counts, shift = None, 0
    for part in parts:
        scores, open_ = flat_scores(part())
        bits = width(scores(slice(0, 0)).dtype)
        shift = max(bits - _DIGIT, 0)
        if counts is None:
            counts = torch.zeros((1 << (bits - shift)) + 1, dtype=torch.int64, device=open_.device)
        for _, values, among in _pieces((scores, open_)):
            values = values[among]
            counts[:-1] += _histogram(ordered(values), shift, bits)
            counts[-1] += values.isnan().sum() if values.is_floating_point() else 0
    assert counts is not None
    counts = comm.sum(counts)
    if counts[-1]:
        raise FloatingPointError("a score is NaN")
    return counts[:-1], shift


def _histogram(keys: Tensor, shift: int, above: int) -> Tensor:
    """Return the numbers of keys by their bits from ``shift`` up to ``above``."""
    return torch.bincount(_digits(keys, shift, above), minlength=1 << (above - shift))


def _digits(keys: Tensor, shift: int, above: int) -> Tensor:
    return (keys >> shift) & ((1 << (above - shift)) - 1)


def _digit_of(counts: Tensor, k: int) -> tuple[int, int]:
    """Return the digit of the ``k``-th best, and how many of that digit are among the ``k`` best."""
    at_least = counts.flip(0).cumsum(0).flip(0)
    digit = count(at_least >= k) - 1
    return digit, k - int(at_least[digit]) + int(counts[digit])


def _split(part: tuple[Scores, Tensor], digit: int, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return flags of the candidates above a highest digit, and index and key of those that have it."""
    scores, open_ = part
    bits = width(scores(slice(0, 0)).dtype)
    chosen = torch.zeros_like(open_)
    where, keys = [torch.empty(0, dtype=torch.int64, device=open_.device)] * 2, []
    keys.append(where[0])
    for start, values, among in _pieces(part):
        words = ordered(values)
        digits = _digits(words, shift, bits)
        chosen[start : start + len(words)] = (digits > digit) & among
        within = places((digits == digit) & among)
        keys.append(words[within])
        where.append(within + start)
    return chosen, torch.cat(where), torch.cat(keys)


@dataclass(frozen=True)
class _Best:
    """Of this rank's keys, by index."""

    above: Tensor
    """surely among the best"""
    tied: Tensor
    """equal to the least of the best"""
    rest: int
    """of all ranks' ties that are among the best"""


def _narrowed(keys: Tensor, k: int, shift: int, comm: Comm) -> _Best:
    """Find the ``k`` ≥ 1 best keys of all ranks by their lowest ``shift`` bits, in rounds of histograms."""
    index = torch.arange(len(keys), device=keys.device)
    above = []
    while shift:
        top, shift = shift, max(shift - _DIGIT, 0)
        counts = comm.sum(_histogram(keys, shift, top))
        digit, k = _digit_of(counts, k)
        digits = _digits(keys, shift, top)
        above.append(index[digits > digit])
        keys, index = keys[digits == digit], index[digits == digit]
        if int(counts[digit]) == k:  # the bin is among the best as a whole, so no order within it matters
            return _Best(torch.cat([*above, index]), index[:0], 0)
    return _Best(torch.cat(above) if above else index[:0], index, k)
