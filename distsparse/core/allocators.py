"""Allocations by name, for a prune: exact active counts of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor

from distsparse.core.signals import Signals
from distsparse.dist import Whole
from distsparse.ops import allocation
from distsparse.ops.allocation import Allocation, SensitivityNorm, apportion
from distsparse.ops.curves import from_curves
from distsparse.ops.select import Scored, Scores, flat_scores

UpdateAllocationName = Literal[
    "uniform", "uniform_first_dense", "er", "erk", "sensitivity", "global_magnitude", "lamp"
]
AllocationName = Literal[
    "uniform", "uniform_first_dense", "er", "erk", "sensitivity", "global_magnitude", "lamp", "layer_scan"
]
"""``layer_scan`` needs what is measured before the first step only."""


@dataclass(frozen=True)
class LayerUnits:
    """What an allocation sees of one layer."""

    shape: tuple[int, ...]
    """output-first weight shape"""
    active: Tensor
    """bool (unit rows, unit cols)"""
    score: Callable[[], Tensor | Scores]
    """of each unit: the prune's, or the magnitude where that is random; made anew at each call, for it may be
    as large as the weight"""
    num_weights: int
    """of the whole layer"""
    whole: Whole = Whole()  # noqa: RUF009  has no state
    """of which ``active`` and ``score`` are the rows of this process"""
    counted: int | None = None
    """:attr:`num_active` where it is known"""

    @cached_property
    def num_units(self) -> int:
        """Units of the whole layer."""
        return self.whole.total(torch.tensor(self.active.numel(), device=self.active.device))

    @cached_property
    def num_active(self) -> int:
        """Active units of the whole layer, the most that a prune can leave."""
        return self.whole.count(self.active) if self.counted is None else self.counted


Layers = Mapping[str, LayerUnits]
Counts = Callable[[Layers, int, Callable[[str, str], Signals]], list[int]]


@dataclass(frozen=True)
class Allocator:
    """(layers, total, signals) → active units of each layer, and the signals that it reads."""

    name: str
    counts: Counts
    needs: frozenset[str] = frozenset()
    runs_sharded: bool = True
    """it takes sums over a layer from :class:`LayerUnits` and ``Signals.whole``"""


def allocator(
    name: AllocationName, *, power: float = 1.0, sensitivity_norm: SensitivityNorm = "rms"
) -> Allocator:
    """Return an allocation by name.

    Args:
        name: see :mod:`distsparse.ops.allocation`; ``global_magnitude`` ranks the prune's own scores over all
            layers, ``lamp`` the layer-adaptive ones; both rank magnitudes where the prune is random.
            ``layer_scan`` is :func:`~distsparse.ops.curves.from_curves` of curves measured by
            :mod:`~distsparse.core.loss_curves`.
        power: of the ER and ERK shares.
        sensitivity_norm: of ``sensitivity``.
    """
    match name:
        case "uniform":
            return _from_shapes(name, allocation.uniform)
        case "uniform_first_dense":
            return _from_shapes(name, partial(allocation.uniform, first_dense=True))
        case "er":
            return _from_shapes(name, partial(allocation.er, power=power))
        case "erk":
            return _from_shapes(name, partial(allocation.erk, power=power))
        case "sensitivity":
            return _sensitivity(sensitivity_norm)
        case "global_magnitude":
            return Allocator(name, lambda layers, total, signals: _globally(layers, total))
        case "lamp":
            return Allocator(name, lambda layers, total, signals: _by_lamp(layers, total), runs_sharded=False)
        case "layer_scan":
            return Allocator(name, _layer_scan, frozenset({"loss_curve"}))


def _from_shapes(name: str, allocate: Allocation) -> Allocator:
    return Allocator(name, lambda layers, total, signals: _in_units(layers, total, allocate))


def _in_units(layers: Layers, total: int, allocate: Allocation) -> list[int]:
    """Allocate by shape; with tiles, in proportion to the weights that the shapes would get."""
    shapes = [layer.shape for layer in layers.values()]
    caps = [layer.num_active for layer in layers.values()]
    sizes = [layer.num_weights for layer in layers.values()]
    units = [layer.num_units for layer in layers.values()]
    if units == sizes:
        return allocate(shapes, total, caps)
    weights = allocate(shapes, round(total / sum(units) * sum(sizes)), sizes)
    # A layer that would get nothing still takes the units for which the others have no room.
    shares = [max(count, 1e-6) * unit / size for count, unit, size in zip(weights, units, sizes, strict=True)]
    return apportion(shares, total, caps)


def _sensitivity(norm: SensitivityNorm) -> Allocator:
    def counts(layers: Layers, total: int, signals: Callable[[str, str], Signals]) -> list[int]:
        sensitivities = []
        for name in layers:
            of_layer = signals(name, "allocate")
            assert of_layer.grad is not None
            sensitivities.append(allocation.sensitivity_of(of_layer.grad, norm, summed=of_layer.whole.sum))
        return _in_units(layers, total, partial(allocation.sensitivity, sensitivities=sensitivities))

    return Allocator("sensitivity", counts, frozenset({"grad"}))


def _layer_scan(layers: Layers, total: int, signals: Callable[[str, str], Signals]) -> list[int]:
    curves = []
    for name in layers:
        curve = signals(name, "allocate").loss_curve
        assert curve is not None
        curves.append([(float(sparsity), float(loss)) for sparsity, loss in curve])
    return _in_units(layers, total, partial(from_curves, curves=curves))


def _globally(layers: Layers, total: int) -> list[int]:
    """Count each layer's units among the best ``total`` of all layers; ties go to the earlier layer."""

    def scored(layer: LayerUnits) -> Scored:
        return layer.score(), layer.active

    whole = next(iter(layers.values())).whole
    nums = [layer.num_active for layer in layers.values()]
    return whole.top_k_counts([partial(scored, layer) for layer in layers.values()], total, nums=nums)


def _by_lamp(layers: Layers, total: int) -> list[int]:
    """Count as :func:`_globally`, by LAMP; all its scores are held, as a sort is too slow to do twice."""

    def given(scored: Scored) -> Scored:
        return scored

    scored = [(_lamp(layer), layer.active) for layer in layers.values()]
    return Whole().top_k_counts([partial(given, part) for part in scored], total)


def _lamp(layer: LayerUnits) -> Tensor:
    """Return score² over the sum of squares of all units not smaller (LAMP, arXiv:2010.07611, eq. 4)."""
    scores, active = flat_scores((layer.score(), layer.active))
    squares = scores(slice(0, len(active))).to(torch.float64).square().masked_fill(~active, 0)
    order = torch.argsort(squares, stable=True)
    ascending = squares[order]
    # From the largest down, so that the sum at a unit holds it and everything above it.
    above = ascending.flip(0).cumsum(0).flip(0)
    ratio = torch.where(above > 0, ascending / above.clamp(min=math.ulp(0.0)), 0.0)
    return torch.empty_like(squares).scatter_(0, order, ratio)
