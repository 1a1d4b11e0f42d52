"""Exact selection in one total order: higher score first, then lower index.

``torch.topk`` promises neither an order of ties nor the same choice on two devices, so a tie could give two
ranks different masks.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    flat_candidates = candidates.reshape(-1)
    flat = score.reshape(-1)
    pool = flat[flat_candidates]
    assert 0 <= k <= pool.numel(), f"cannot select {k} of {pool.numel()} candidates"
    if pool.is_floating_point() and bool(torch.isnan(pool).any()):
        raise FloatingPointError("a score is NaN")
    if k == 0:
        return torch.zeros_like(candidates)
    if k == pool.numel():
        return candidates.clone()
    threshold = torch.kthvalue(pool, pool.numel() - k + 1).values
    chosen = (flat > threshold) & flat_candidates
    ties = ((flat == threshold) & flat_candidates).nonzero().squeeze(1)
    chosen[ties[: k - int(chosen.sum())]] = True
    return chosen.reshape(score.shape)
