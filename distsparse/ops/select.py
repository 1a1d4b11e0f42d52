"""Exact selection in one total order: higher score first, then lower index.

``torch.topk`` promises neither an order of ties nor the same choice on two devices, so a tie could give two
ranks different masks.

A sample bounds the threshold from both sides, and only the candidates between the bounds are ranked. The
sample decides the cost and nothing else: counts tell whether the bounds hold; if not, all are ranked.

Scores are asked for a range at a time, so that on a CPU they are made, compared and let go within the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from distsparse.ops import counter_rng, kernels, sampling
from distsparse.ops.flags import above, at, below, count, kth_largest, places
from distsparse.ops.threads import LEAST, of_each

Scores = Callable[[slice | Tensor], Tensor]
"""The scores of a range of flat (row-major) indices, or at int64 indices; the same either way"""


@dataclass(frozen=True)
class Magnitudes:
    """Scores that are the magnitudes of a flat tensor: a compiled pass reads them where they are."""

    values: Tensor

    def __call__(self, index: slice | Tensor) -> Tensor:
        """Return a range's scores, or those at int64 indices."""
        return at(self.values, index).abs()


@dataclass(frozen=True)
class RandomBits:
    """Scores that are a key's random bits: a compiled pass makes them as it goes."""

    key: int
    device: torch.device

    def __call__(self, index: slice | Tensor) -> Tensor:
        """Return a range's scores, or those at int64 indices."""
        if isinstance(index, slice):
            return counter_rng.bits_between(self.key, index.start, index.stop, self.device)
        return counter_rng.bits(self.key, index)


Scored = tuple[Tensor | Scores, Tensor]
"""scores, and bool candidates of their shape"""

_SAMPLED_OF_MANY = 256
_CACHED = 1 << 17
"""candidates whose scores fit into a core's cache"""


def flat_scores(scored: Scored) -> tuple[Scores, Tensor]:
    """Return scores as :data:`Scores`, and the candidates flat."""
    score, candidates = scored
    if isinstance(score, Tensor):
        score = partial(at, score.reshape(-1))
    return score, candidates.reshape(-1)


def top_k_mask(
    score: Tensor | Scores, k: int, candidates: Tensor, *, num_candidates: int | None = None
) -> Tensor:
    """Return a bool mask, shaped like ``candidates``, of the ``k`` best of them.

    Args:
        score: floating or integer, of the candidates' shape or as :data:`Scores`; larger is better.
        k: how many to select, 0 ≤ k ≤ number of candidates.
        candidates: bool, any shape; only these can be selected.
        num_candidates: how many there are, where it is known: it is not counted then.

    Ties at the threshold go to the lower flat (row-major) index.

    Raises:
        FloatingPointError: a candidate's score is NaN.
    """
    scores, flags = flat_scores((score, candidates))
    return _best_of(scores, flags, num_candidates, k, fill=False).reshape(candidates.shape)


def filled_mask(score: Tensor | Scores, k: int, active: Tensor, *, num_active: int | None = None) -> Tensor:
    """Return ``active``, bool of any shape, with the ``k`` best of all others; else as :func:`top_k_mask`."""
    scores, flags = flat_scores((score, active))
    return _best_of(scores, flags, num_active, k, fill=True).reshape(active.shape)


def _best_of(scores: Scores, flags: Tensor, num_flagged: int | None, k: int, *, fill: bool) -> Tensor:
    """Return the ``k`` best of what is flagged; or, to ``fill``, of what is not, with what is."""
    if num_flagged is None:
        num_flagged = count(flags)
    if kernels.usable(flags):
        best = None
        if isinstance(scores, RandomBits):
            best = kernels.best_random(scores.key, flags, num_flagged, k, fill=fill)
        elif isinstance(scores, Magnitudes) and kernels.comparable(scores.values):
            best = kernels.best_magnitudes(scores.values, flags, num_flagged, k, fill=fill)
        if best is not None:
            return best
    num_open = len(flags) - num_flagged if fill else num_flagged
    assert 0 <= k <= num_open, f"cannot select {k} of {num_open} candidates"
    if k in (0, num_open):
        _refuse_nan_among(scores, _candidates(flags, fill))
        return torch.full_like(flags, k > 0) if fill == (k > 0) else flags.clone()
    sample = _sampled(scores, flags, sampling.size_for(len(flags)), fill=fill)
    wanted = k + (num_flagged if fill else 0)
    for low, high in _bounds(sample, k / num_open):
        chosen, num_chosen, where, ranked = _split(scores, flags, low, high, fill=fill)
        rest = wanted - num_chosen
        if 0 <= rest <= len(where):
            break
    _refuse_nan(ranked)
    return chosen.index_copy_(0, where, _best(ranked, rest))


def _candidates(flags: Tensor, fill: bool) -> Tensor:
    return ~flags if fill else flags


def top_k_counts(
    parts: Sequence[Callable[[], Scored]], k: int, *, nums: Sequence[int] | None = None
) -> list[int]:
    """Return how many of the ``k`` best candidates of all parts lie in each; ties go to the earlier part.

    A part is made whenever it is looked at, two or three times, so that one part's scores exist at a time.
    ``nums`` are the parts' candidates, where they are known.

    Raises:
        FloatingPointError: a candidate's score is NaN, and there is something to choose.
    """

    def look(scores: Scores, open_: Tensor) -> tuple[int, Tensor]:
        num = count(open_) if nums is None else 0
        return num, _sampled(scores, open_, math.ceil(open_.numel() / _SAMPLED_OF_MANY))

    counted, samples = _of_each(parts, look)
    sizes = counted if nums is None else list(nums)
    num_open = sum(sizes)
    assert 0 <= k <= num_open, f"cannot select {k} of {num_open} candidates"
    if k in (0, num_open):
        return sizes if k else [0] * len(sizes)
    device = samples[0].device  # a model may lie on several
    sample = torch.cat([drawn.to(device) for drawn in samples])
    for low, high in _bounds(sample, k / num_open):
        counts, undecided = _of_each(parts, partial(_num_above, low=low, high=high))
        rest = k - sum(counts)
        if 0 <= rest <= sum(len(values) for values in undecided):
            break
    within = torch.cat([values.to(device) for values in undecided])
    _refuse_nan(within)
    best = _best(within, rest).split([len(values) for values in undecided])  # type: ignore[no-untyped-call]
    return [num + count(part) for num, part in zip(counts, best, strict=True)]


def _of_each(
    parts: Sequence[Callable[[], Scored]], look: Callable[[Scores, Tensor], tuple[int, Tensor]]
) -> tuple[list[int], list[Tensor]]:
    """Return the numbers and the values that are found in each part.

    On several threads where compiled passes read the scores in place, so that nothing is made of their size.
    """
    scores, flags = flat_scores(parts[0]())
    several = _compiled(scores) and flags.device.type == "cpu" and kernels.installed()
    sizes = [LEAST if several else 0] * len(parts)
    del scores, flags
    found = of_each(sizes, lambda place: look(*flat_scores(parts[place]())))
    return [num for num, _ in found], [values for _, values in found]


def _compiled(scores: Scores) -> bool:
    """Tell whether there are compiled passes that read, or make, such scores as they go."""
    return isinstance(scores, RandomBits) or (
        isinstance(scores, Magnitudes) and kernels.comparable(scores.values)
    )


def _ranges(open_: Tensor) -> Iterator[slice]:
    """Yield ranges that cover a layer: small ones on a CPU, where they stay in the cache."""
    size = _CACHED if open_.device.type == "cpu" else max(len(open_), 1)
    for start in range(0, len(open_), size):
        yield slice(start, min(start + size, len(open_)))


def _num_above(scores: Scores, flags: Tensor, low: Tensor, high: Tensor) -> tuple[int, Tensor]:
    """Return how many flagged scores are above ``high``, and those neither above it nor below ``low``."""
    low, high = low.to(flags.device), high.to(flags.device)
    if isinstance(scores, Magnitudes) and kernels.usable(flags) and kernels.comparable(scores.values):
        return kernels.num_above(scores.values, flags, low, high)
    _, num, _, between = _split(scores, flags, low, high)
    return num, between


def _split(
    scores: Scores, flags: Tensor, low: Tensor, high: Tensor, *, fill: bool = False
) -> tuple[Tensor, int, Tensor, Tensor]:
    """Return what is chosen for certain and its number; index and score of the candidates that may be.

    Candidates above ``high`` are chosen, and to ``fill`` all that is flagged; those below ``low`` are not.
    """
    low, high = low.to(flags.device), high.to(flags.device)
    if kernels.usable(flags):
        if isinstance(scores, RandomBits):
            return kernels.split_random(scores.key, flags, low, high, fill=fill)
        if isinstance(scores, Magnitudes) and kernels.comparable(scores.values):
            return kernels.split(scores.values, flags, low, high, magnitudes=True, fill=fill)
    chosen, where, between = torch.empty_like(flags), [], []
    for part in _ranges(flags):
        values, given = scores(part), flags[part]
        if kernels.usable(given, values) and kernels.comparable(values):
            chosen[part], _, within, ranked = kernels.split(
                values, given, low, high, magnitudes=False, fill=fill
            )
        else:
            among = _candidates(given, fill)
            torch.logical_and(above(values, high), among, out=chosen[part])
            within = places(torch.gt(among, below(values, low).logical_or_(chosen[part])))
            ranked = values.index_select(0, within)
            if fill:
                chosen[part] |= given
        between.append(ranked)
        where.append(within.add_(part.start))
    return chosen, count(chosen), torch.cat(where), torch.cat(between)


def _refuse_nan_among(scores: Scores, open_: Tensor) -> None:
    for part in _ranges(open_):
        values = scores(part)
        if not values.is_floating_point():
            return
        if _has_nan(values):  # of a candidate, or of another
            _refuse_nan(values.masked_fill(~open_[part], 0))


def _refuse_nan(scores: Tensor) -> None:
    if _has_nan(scores):
        raise FloatingPointError("a score is NaN")


def _has_nan(scores: Tensor) -> bool:
    # A maximum carries a NaN along.
    return scores.is_floating_point() and len(scores) > 0 and bool(scores.max().isnan())


def _sampled(scores: Scores, flags: Tensor, num: int, *, fill: bool = False) -> Tensor:
    """Return the candidates' scores at ``num`` indices, spread evenly and in step with no row or kernel."""
    size = len(flags)
    if size <= num:
        return scores(places(_candidates(flags, fill)))
    step = sampling.stride(size)
    if kernels.usable(flags):
        if isinstance(scores, RandomBits):
            return kernels.sample_random(scores.key, flags, num, step, fill=fill)
        if isinstance(scores, Magnitudes) and kernels.comparable(scores.values):
            return kernels.sample_magnitudes(scores.values, flags, num, step, fill=fill)
    index = torch.arange(num, device=flags.device).mul_(step).remainder_(size)
    return scores(index[places(_candidates(flags.index_select(0, index), fill))])


def _bounds(sample: Tensor, share: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield likely bounds of the least score of the best ``share`` of the candidates, then none at all."""
    yield _bracket(sample, share)
    yield _unbounded(sample)


def _bracket(sample: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return bounds that nearly always hold the least score of the best ``share`` of the candidates.

    No bound where that is past the sample's end, or where the sample has a NaN.
    """
    low, high = _unbounded(sample)
    if _has_nan(sample):
        return low, high
    low_rank, high_rank = sampling.bracket(len(sample), share)
    if low_rank <= len(sample):
        low = kth_largest(sample, low_rank)
    if high_rank >= 1:
        high = kth_largest(sample, high_rank)
    return low, high


def _unbounded(sample: Tensor) -> tuple[Tensor, Tensor]:
    if sample.is_floating_point():
        least, most = -math.inf, math.inf
    else:
        least, most = torch.iinfo(sample.dtype).min, torch.iinfo(sample.dtype).max
    low, high = sample.new_tensor([least, most])
    return low, high


def _best(scores: Tensor, k: int) -> Tensor:
    """Return a bool mask of the ``k`` best scores, which have no NaN; ties go to the lower index."""
    if k in (0, len(scores)):
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    threshold = kth_largest(scores, k)
    chosen = scores >= threshold
    if surplus := count(chosen) - k:
        chosen[places(scores == threshold)[-surplus:]] = False
    return chosen
