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
from functools import partial

import torch
from torch import Tensor

from distsparse.ops.flags import above, at, below, count, kth_largest, places

Scores = Callable[[slice | Tensor], Tensor]
"""The scores of a range of flat (row-major) indices, or at int64 indices; the same either way"""

Scored = tuple[Tensor | Scores, Tensor]
"""scores, and bool candidates of their shape"""

_SAMPLED_OF_MANY = 256
_CACHED = 1 << 17
"""candidates whose scores fit into a core's cache"""
_GOLDEN_RATIO = 0.6180339887498949


def flat_scores(scored: Scored) -> tuple[Scores, Tensor]:
    """Return scores as :data:`Scores`, and the candidates flat."""
    score, candidates = scored
    if isinstance(score, Tensor):
        score = partial(at, score.reshape(-1))
    return score, candidates.reshape(-1)


def top_k_mask(score: Tensor | Scores, k: int, candidates: Tensor) -> Tensor:
    """Return a bool mask, shaped like ``candidates``, of the ``k`` best of them.

    Args:
        score: floating or integer, of the candidates' shape or as :data:`Scores`; larger is better.
        k: how many to select, 0 ≤ k ≤ number of candidates.
        candidates: bool, any shape; only these can be selected.

    Ties at the threshold go to the lower flat (row-major) index.

    Raises:
        FloatingPointError: a candidate's score is NaN.
    """
    scores, open_ = flat_scores((score, candidates))
    num_open = count(open_)
    assert 0 <= k <= num_open, f"cannot select {k} of {num_open} candidates"
    if k in (0, num_open):
        _refuse_nan_among(scores, open_)
        return candidates.clone() if k else torch.zeros_like(candidates)
    # More would bring the bounds nearer to the threshold by less than it costs to draw them.
    sample = _sampled(scores, open_, math.ceil((len(open_) / 4) ** (2 / 3)))
    for low, high in (_bracket(sample, k / num_open), _unbounded(sample)):
        chosen, where, ranked = _split(scores, open_, low, high)
        rest = k - count(chosen)
        if 0 <= rest <= len(where):
            break
    _refuse_nan(ranked)
    return chosen.index_copy_(0, where, _best(ranked, rest)).reshape(candidates.shape)


def top_k_counts(parts: Sequence[Callable[[], Scored]], k: int) -> list[int]:
    """Return how many of the ``k`` best candidates of all parts lie in each; ties go to the earlier part.

    A part is made whenever it is looked at, two or three times, so that one part's scores exist at a time.

    Raises:
        FloatingPointError: a candidate's score is NaN, and there is something to choose.
    """
    sizes, samples = [], []
    for part in parts:
        scores, open_ = flat_scores(part())
        sizes.append(count(open_))
        samples.append(_sampled(scores, open_, math.ceil(open_.numel() / _SAMPLED_OF_MANY)))
    num_open = sum(sizes)
    assert 0 <= k <= num_open, f"cannot select {k} of {num_open} candidates"
    if k in (0, num_open):
        return sizes if k else [0] * len(sizes)
    device = samples[0].device  # a model may lie on several
    sample = torch.cat([drawn.to(device) for drawn in samples])
    for low, high in (_bracket(sample, k / num_open), _unbounded(sample)):
        counts, undecided = [], []
        for part in parts:
            chosen, _, values = _split(*flat_scores(part()), low, high)
            counts.append(count(chosen))
            undecided.append(values.to(device))
        rest = k - sum(counts)
        if 0 <= rest <= sum(len(values) for values in undecided):
            break
    within = torch.cat(undecided)
    _refuse_nan(within)
    best = _best(within, rest).split([len(values) for values in undecided])  # type: ignore[no-untyped-call]
    return [num + count(part) for num, part in zip(counts, best, strict=True)]


def _ranges(open_: Tensor) -> Iterator[slice]:
    """Yield ranges that cover a layer: small ones on a CPU, where they stay in the cache."""
    size = _CACHED if open_.device.type == "cpu" else max(len(open_), 1)
    for start in range(0, len(open_), size):
        yield slice(start, min(start + size, len(open_)))


def _split(scores: Scores, open_: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return flags of the candidates above ``high``; index and score of those that are not below ``low``."""
    low, high = low.to(open_.device), high.to(open_.device)
    chosen, where, between = torch.empty_like(open_), [], []
    for part in _ranges(open_):
        values, among, best = scores(part), open_[part], chosen[part]
        torch.logical_and(above(values, high), among, out=best)
        within = places(torch.gt(among, below(values, low).logical_or_(best)))
        between.append(values.index_select(0, within))
        where.append(within.add_(part.start))
    return chosen, torch.cat(where), torch.cat(between)


def _refuse_nan_among(scores: Scores, open_: Tensor) -> None:
    for part in _ranges(open_):
        values = scores(part)
        if not values.is_floating_point():
            return
        _refuse_nan(values.masked_fill(~open_[part], 0))


def _refuse_nan(scores: Tensor) -> None:
    if scores.is_floating_point() and bool(scores.isnan().any()):
        raise FloatingPointError("a score is NaN")


def _sampled(scores: Scores, open_: Tensor, num: int) -> Tensor:
    """Return the candidates' scores at ``num`` indices, spread evenly and in step with no row or kernel."""
    size = len(open_)
    if size <= num:
        return scores(places(open_))
    step = int(size * _GOLDEN_RATIO) | 1
    index = torch.arange(num, device=open_.device).mul_(step).remainder_(size)
    return scores(index[places(open_.index_select(0, index))])


def _bracket(sample: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return bounds that nearly always hold the least score of the best ``share`` of the candidates.

    Three standard deviations of a rank in the sample to either side; no bound where that is past its end, or
    where the sample has a NaN.
    """
    num = len(sample)
    rank = share * num
    margin = 3 * math.sqrt(rank * (1 - share)) + 2
    low, high = _unbounded(sample)
    if sample.is_floating_point() and bool(sample.isnan().any()):
        return low, high
    if rank + margin <= num:
        low = kth_largest(sample, math.ceil(rank + margin))
    if rank - margin >= 1:
        high = kth_largest(sample, int(rank - margin))
    return low, high


def _unbounded(sample: Tensor) -> tuple[Tensor, Tensor]:
    if sample.is_floating_point():
        return sample.new_tensor(-math.inf), sample.new_tensor(math.inf)
    limits = torch.iinfo(sample.dtype)
    return sample.new_tensor(limits.min), sample.new_tensor(limits.max)


def _best(scores: Tensor, k: int) -> Tensor:
    """Return a bool mask of the ``k`` best scores, which have no NaN; ties go to the lower index."""
    if k in (0, len(scores)):
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    threshold = kth_largest(scores, k)
    chosen = scores >= threshold
    if surplus := count(chosen) - k:
        chosen[places(scores == threshold)[-surplus:]] = False
    return chosen
