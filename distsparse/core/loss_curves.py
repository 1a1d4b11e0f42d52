"""How much the loss rises as one layer alone is pruned, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distsparse.core.weights import SparseWeight, unwrap
from distsparse.dist import Comm
from distsparse.ops.allocation import num_active
from distsparse.ops.select import top_k_mask

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
"""at which a layer is measured unless told otherwise"""


@torch.no_grad()
def mean_losses(
    model: nn.Module,
    weights: Mapping[str, SparseWeight],
    batches: Sequence[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    comm: Comm,
    *,
    sparsities: Sequence[float] = SPARSITIES,
) -> tuple[float, dict[str, list[float]]]:
    """Return the mean loss, and that of each layer at each sparsity while all other layers are as found.

    A layer keeps its :func:`num_kept` weights of the largest magnitude. One forward pass for each batch,
    layer and sparsity above 0, in the mode that the model is in, with the same random numbers in every pass.
    Weights, gradients, buffers and random state are left as found. All ranks must call it; the mean is over
    all ranks' batches.

    Args:
        model: bare or wrapped; ``loss_fn`` gets the bare one.
        weights: the layers to prune, by name.
        batches: this rank's; ranks may hold different numbers of them.
        loss_fn: (model, batch) → scalar mean loss.
        comm: the ranks.
        sparsities: in [0, 1).

    Raises:
        ValueError: no rank holds a batch.
    """
    bare = unwrap(model)

    def total_loss() -> float:
        losses = []
        for batch in batches:
            torch.manual_seed(0)  # dropout must differ between two passes by nothing
            losses.append(float(loss_fn(bare, batch)))
        return sum(losses)

    with _left_as_found(bare):
        sums = [float(len(batches)), total_loss()]
        for weight in weights.values():
            for sparsity in sparsities:
                with _pruned(weight, sparsity):
                    sums.append(total_loss() if sparsity else sums[1])
    device = next(iter(weights.values())).parameter.device
    num_batches, *totals = comm.sum(torch.tensor(sums, dtype=torch.float64, device=device)).tolist()
    if num_batches == 0:
        raise ValueError("loss curves are measured on batches, and batches is empty")
    base, *means = (value / num_batches for value in totals)
    n = len(sparsities)
    return base, {name: means[i * n : (i + 1) * n] for i, name in enumerate(weights)}


def num_kept(num_weights: int, sparsity: float) -> int:
    """Return how many weights a pruned layer keeps, at least one."""
    return max(num_active(num_weights, sparsity), 1)


@contextmanager
def _pruned(weight: SparseWeight, sparsity: float) -> Iterator[None]:
    """Zero a layer's weights of the smallest magnitude, and put them back."""
    values = weight.parameter.detach()
    before = values.clone()
    size = weight.matrix(before).abs()
    kept = top_k_mask(size, num_kept(size.numel(), sparsity), torch.ones_like(size, dtype=torch.bool))
    values.masked_fill_(weight.unmatrix(~kept), 0)
    try:
        yield
    finally:
        values.copy_(before)


@contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    """Restore a model's buffers, and the state of all random generators."""
    buffers: list[tuple[Tensor, Tensor]] = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)
