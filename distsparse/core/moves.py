"""Moves: pure functions from a context to a topology. A method is a sequence of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from distsparse.core.allocators import Allocator
from distsparse.core.criteria import Criterion
from distsparse.core.signals import Signals
from distsparse.core.topology import Topology
from distsparse.ops.allocation import num_active
from distsparse.ops.schedule import Schedule
from distsparse.ops.select import top_k_mask


@dataclass(frozen=True)
class Context:
    """What a move sees. Every value is equal on all ranks."""

    topology: Topology
    """as the moves before this one left it."""
    before: Topology
    """as it was when the update began."""
    shapes: Mapping[str, tuple[int, ...]]
    """output-first weight shape of each layer."""
    signals: Callable[[str, str], Signals]
    """signals of (layer, purpose); the purpose keeps a drop's random numbers apart from a grow's."""
    progress: float
    """t / T_end in [0, 1]."""
    sparsity: float
    """scheduled sparsity of all layers together."""


@dataclass(frozen=True)
class Move:
    """A step of an update, by name, with the signals it needs."""

    name: str
    apply: Callable[[Context], Topology]
    needs: frozenset[str] = frozenset()


def run(moves: Sequence[Move], context: Context) -> Topology:
    """Apply moves one after another; return the last topology."""
    topology = context.topology
    for move in moves:
        topology = move.apply(replace(context, topology=topology))
    return topology


def prune(by: Criterion, *, allocation: Allocator) -> Move:
    """Lower the targets to the scheduled sparsity and cut each layer to its best active weights.

    A layer is never given more than it has: a prune does not grow.
    """

    def apply(context: Context) -> Topology:
        masks = context.topology.masks
        total = num_active(context.topology.num_weights, context.sparsity)
        caps = [context.topology.nnz(name) for name in masks]
        counts = allocation.counts(context.shapes, min(total, sum(caps)), caps, context.signals)
        targets = dict(zip(masks, counts, strict=True))
        return Topology(
            {
                name: top_k_mask(by.score(context.signals(name, "prune")), targets[name], mask)
                for name, mask in masks.items()
            },
            targets,
        )

    return Move(f"prune({by.name}, {allocation.name})", apply, by.needs | allocation.needs)


def drop(by: Criterion, fraction: Schedule) -> Move:
    """Open ``int(fraction(progress) · n_active)`` vacancies in each layer, worst score first."""

    def apply(context: Context) -> Topology:
        def kept(name: str, mask: Tensor) -> Tensor:
            active = context.topology.nnz(name)
            num_drop = int(fraction(context.progress) * active)
            return top_k_mask(by.score(context.signals(name, "drop")), active - num_drop, mask)

        return context.topology.with_masks({n: kept(n, m) for n, m in context.topology.masks.items()})

    return Move(f"drop({by.name})", apply, by.needs)


def grow(by: Criterion, *, exclude_dropped: bool = False) -> Move:
    """Fill each layer's vacancies, best score first, among all positions that were not kept.

    A weight dropped a moment ago may so come back, and then keeps its value and its optimizer state.
    ``exclude_dropped`` lets it only where too few other positions are left to keep the count exact.
    """

    def apply(context: Context) -> Topology:
        def filled(name: str, mask: Tensor) -> Tensor:
            vacancies = context.topology.targets[name] - context.topology.nnz(name)
            if vacancies == 0:
                return mask
            score = by.score(context.signals(name, "grow"))
            first = ~(mask | context.before.masks[name]) if exclude_dropped else ~mask
            num_first = min(vacancies, int(first.sum()))
            grown = mask | top_k_mask(score, num_first, first)
            return grown | top_k_mask(score, vacancies - num_first, ~grown)

        return context.topology.with_masks({n: filled(n, m) for n, m in context.topology.masks.items()})

    return Move(f"grow({by.name})", apply, by.needs)
