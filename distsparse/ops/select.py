"""Exact selection in one total order: higher score first, then lower index.

``torch.topk`` promises neither an order of ties nor the same choice on two devices, so a tie could give two
ranks different masks.

A sample bounds the threshold, and only the candidates on the smaller side of the bound are ranked. The sample
decides the cost and nothing else: counts tell whether the bound holds; if not, all candidates are ranked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distsparse.ops.flags import above, below, count, kth_largest, places

Scored = tuple[Tensor, Tensor]
"""scores, and bool candidates of their shape"""

_FEW = 1 << 14
"""candidates that are ranked without a bound"""
_SAMPLED_OF_MANY = 256
_GOLDEN_RATIO = 0.6180339887498949


def top_k_mask(score: Tensor, k: int, candidates: Tensor) -> Tensor:
    """Return a bool mask, shaped like ``score``, of the ``k`` best candidates.

    Args:
        score: any shape, floating or integer; larger is better.
        k: how many to select, 0 ≤ k ≤ number of candidates.
        candidates: bool, shaped like ``score``; only these can be selected.

    Ties at the threshold go to the lower flat (row-major) index.

    Raises:
        FloatingPointError: a candidate's score is NaN.
    """
    flat, open_ = score.reshape(-1), candidates.reshape(-1)
    num_open = count(open_)
    assert 0 <= k <= num_open, f"cannot select {k} of {num_open} candidates"
    if k in (0, num_open):
        _refuse_nan(flat, open_)
        return candidates.clone() if k else torch.zeros_like(candidates)
    fewer_chosen = 2 * k <= num_open
    ranked, rest = open_, k
    if num_open > max(_FEW, flat.numel() // 4):
        # More would bring the bound nearer to the threshold by less than it costs to draw them.
        sample = _sampled(flat, open_, math.ceil((flat.numel() / 4) ** (2 / 3)))
        low, high = _bracket(sample, k / num_open)
        ranked = torch.gt(open_, below(flat, low) if fewer_chosen else above(flat, high))
    where = places(ranked)
    if not fewer_chosen:
        rest -= num_open - len(where)  # all above the bound are chosen
    if not 0 <= rest <= len(where):
        where, rest = places(open_), k
    scores = flat.index_select(0, where)
    _refuse_nan(scores)
    best = _best(scores, rest)
    if fewer_chosen:
        chosen = torch.zeros_like(open_).index_fill_(0, where[places(best)], True)
    else:
        chosen = open_.clone().index_fill_(0, where[places(~best)], False)
    return chosen.reshape(score.shape)


def top_k_counts(parts: Sequence[Callable[[], Scored]], k: int) -> list[int]:
    """Return how many of the ``k`` best candidates of all parts lie in each; ties go to the earlier part.

    A part is made whenever it is looked at, two or three times, so that one part's scores exist at a time.

    Raises:
        FloatingPointError: a candidate's score is NaN, and there is something to choose.
    """
    sizes, samples = [], []
    for part in parts:
        flat, open_ = _flat(part)
        sizes.append(count(open_))
        samples.append(_sampled(flat, open_, math.ceil(flat.numel() / _SAMPLED_OF_MANY)))
    num_open = sum(sizes)
    assert 0 <= k <= num_open, f"cannot select {k} of {num_open} candidates"
    if k in (0, num_open):
        return sizes if k else [0] * len(sizes)
    device = samples[0].device  # a model may lie on several
    sample = torch.cat([drawn.to(device) for drawn in samples])
    for low, high in (_bracket(sample, k / num_open), _unbounded(sample)):
        counts, scores = [], []
        for part in parts:
            flat, open_ = _flat(part)
            chosen = above(flat, high.to(flat.device)).logical_and_(open_)
            decided = below(flat, low.to(flat.device)).logical_or_(chosen)
            counts.append(count(chosen))
            scores.append(flat.index_select(0, places(torch.gt(open_, decided))).to(device))
        rest = k - sum(counts)
        if 0 <= rest <= sum(len(values) for values in scores):
            break
    within = torch.cat(scores)
    _refuse_nan(within)
    best = _best(within, rest).split([len(values) for values in scores])  # type: ignore[no-untyped-call]
    return [num + count(part) for num, part in zip(counts, best, strict=True)]


def _flat(part: Callable[[], Scored]) -> Scored:
    score, candidates = part()
    return score.reshape(-1), candidates.reshape(-1)


def _refuse_nan(scores: Tensor, candidates: Tensor | None = None) -> None:
    if scores.is_floating_point():
        wrong = scores.isnan() if candidates is None else scores.isnan().logical_and_(candidates)
        if bool(wrong.any()):
            raise FloatingPointError("a score is NaN")


def _sampled(flat: Tensor, open_: Tensor, num: int) -> Tensor:
    """Return the candidates' scores at ``num`` positions, spread evenly and in step with no row or kernel."""
    size = flat.numel()
    if size <= num:
        return flat.index_select(0, places(open_))
    step = int(size * _GOLDEN_RATIO) | 1
    positions = torch.arange(num, device=flat.device).mul_(step).remainder_(size)
    return flat.index_select(0, positions[places(open_.index_select(0, positions))])


def _bracket(sample: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return bounds that all but surely hold the least score of the best ``share`` of the candidates.

    Four standard deviations of a rank in the sample to either side; no bound where that is past its end, or
    where the sample has a NaN.
    """
    num = len(sample)
    rank = share * num
    margin = 4 * math.sqrt(rank * (1 - share)) + 2
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
