"""Allocations by name, for a prune: exact active counts of each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from distsparse.core.signals import Signals
from distsparse.ops import allocation
from distsparse.ops.allocation import Allocation, SensitivityNorm

AllocationName = Literal["uniform", "uniform_first_dense", "er", "erk", "sensitivity"]

Shapes = Mapping[str, tuple[int, ...]]
Counts = Callable[[Shapes, int, Sequence[int], Callable[[str, str], Signals]], list[int]]


@dataclass(frozen=True)
class Allocator:
    """(shapes, total, caps, signals) → active counts, and the signals that it reads."""

    name: str
    counts: Counts
    needs: frozenset[str] = frozenset()


def _from_shapes(name: str, allocate: Allocation) -> Allocator:
    return Allocator(name, lambda shapes, total, caps, signals: allocate(list(shapes.values()), total, caps))


def _sensitivity(norm: SensitivityNorm) -> Allocator:
    def counts(
        shapes: Shapes, total: int, caps: Sequence[int], signals: Callable[[str, str], Signals]
    ) -> list[int]:
        sensitivities = []
        for name in shapes:
            gradient = signals(name, "allocate").grad
            assert gradient is not None
            sensitivities.append(allocation.sensitivity_of(gradient, norm))
        return allocation.sensitivity(list(shapes.values()), total, caps, sensitivities=sensitivities)

    return Allocator("sensitivity", counts, frozenset({"grad"}))


def allocator(name: AllocationName, *, sensitivity_norm: SensitivityNorm = "rms") -> Allocator:
    """Return an allocation by name; ``sensitivity_norm`` matters to ``sensitivity`` only."""
    match name:
        case "uniform":
            return _from_shapes(name, allocation.uniform)
        case "uniform_first_dense":
            return _from_shapes(name, partial(allocation.uniform, first_dense=True))
        case "er":
            return _from_shapes(name, allocation.er)
        case "erk":
            return _from_shapes(name, allocation.erk)
        case "sensitivity":
            return _sensitivity(sensitivity_norm)
