"""Layer sensitivity scan: the loss as each layer alone is pruned to each sparsity.

Han et al. 2015, "Learning both weights and connections for efficient neural networks", arXiv:1506.02626,
section 5. :func:`distsparse.ops.curves.curve_sparsities` makes an allocation of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from distsparse.core.initial import Batch, LossFn
from distsparse.core.loss_curves import SPARSITIES, mean_losses, num_kept
from distsparse.core.weights import find_weights
from distsparse.dist import Comm, current


@dataclass(frozen=True)
class LayerLoss:
    """The loss with one layer pruned; a list of them is a table, ``pandas.DataFrame(rows)``."""

    layer: str
    sparsity: float
    """asked for; the layer keeps at least one weight"""
    num_weights: int
    num_active: int
    loss: float
    """mean over all ranks' batches"""
    loss_increase: float
    """against the model as it was found; negative where pruning helps"""


def layer_scan(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: LossFn,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    training: bool = False,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    comm: Comm | None = None,
) -> list[LayerLoss]:
    """Prune one layer at a time by magnitude; return the loss for each layer and sparsity, in that order.

    One forward pass for each batch, layer and sparsity above 0. Deterministic: every pass draws the same
    random numbers. Weights, gradients, buffers and modes are left as found. All ranks must call it.

    Args:
        model: on its device, bare or wrapped by DDP; ``loss_fn`` gets the bare one.
        batches: this rank's, held in memory.
        loss_fn: (model, batch) → scalar mean loss.
        sparsities: inactive fractions of the layer, rising in [0, 1); weights that are zero already go first.
        training: measure in training mode (dropout on, statistics of the batch in normalisations), as for a
            network before its first step; evaluation mode unless given.
        include: glob patterns of the weights to scan, see :func:`~distsparse.core.weights.find_weights`.
        exclude: glob patterns of weights to leave out.
        comm: the ranks; the default process group unless given.

    Raises:
        ValueError: sparsities do not rise in [0, 1), no rank holds a batch, or a pattern matches nothing.
    """
    if not all(0 <= s < 1 for s in sparsities) or any(a >= b for a, b in pairwise(sparsities)):
        raise ValueError(f"sparsities = {tuple(sparsities)}: must rise, from 0 at least to less than 1")
    weights = {weight.name: weight for weight in find_weights(model, include=include, exclude=exclude)}
    with _mode(model, training):
        base, losses = mean_losses(
            model, weights, list(batches), loss_fn, comm or current(), sparsities=sparsities
        )
    sizes = {name: weight.parameter.numel() for name, weight in weights.items()}
    return [
        LayerLoss(name, sparsity, sizes[name], num_kept(sizes[name], sparsity), loss, loss - base)
        for name, of_layer in losses.items()
        for sparsity, loss in zip(sparsities, of_layer, strict=True)
    ]


def curves(rows: Iterable[LayerLoss]) -> dict[str, list[tuple[float, float]]]:
    """Return each layer's (sparsity, loss increase) points, as :mod:`distsparse.ops.curves` takes them."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        points.setdefault(row.layer, []).append((row.sparsity, row.loss_increase))
    return points


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set a model's mode, and give each of its modules its own back."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
