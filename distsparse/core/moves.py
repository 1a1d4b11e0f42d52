"""Moves: pure functions from a context to a topology. A method is a sequence of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from distsparse.core.allocators import Allocator, LayerUnits
from distsparse.core.criteria import Criterion, magnitude, random
from distsparse.core.signals import Signals
from distsparse.core.topology import Topology
from distsparse.dist import Whole
from distsparse.ops.allocation import apportion, num_active
from distsparse.ops.schedule import Schedule
from distsparse.ops.select import Scored, Scores
from distsparse.ops.structure import Structure

Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class Context:
    """What a move sees. Every value is equal on all ranks, but for the masks and signals of a sharded model.

    Of these a rank has its own rows; what is true of a whole layer (counts, choices) is asked of ``whole``.
    """

    topology: Topology
    """as the moves before this one left it."""
    before: Topology
    """as it was when the update began."""
    shapes: Mapping[str, tuple[int, ...]]
    """output-first weight shape of each layer, in the model's order."""
    signals: Callable[[str, str], Signals]
    """signals of (layer, purpose); the purpose keeps a drop's random numbers apart from a grow's."""
    progress: float
    """(t - t_start) / (T_end - t_start) in [0, 1]."""
    sparsity: float
    """scheduled sparsity of all layers together."""
    structure: Structure = Structure()  # noqa: RUF009  frozen
    whole: Whole = Whole()  # noqa: RUF009  has no state
    first_rows: Mapping[str, int] = field(default_factory=dict)
    """place of the rows here in the whole layer, 0 where a layer is not in it"""
    outputs: Callable[[], frozenset[str]] | None = None
    """names of layers whose rows are the model's outputs; the last one unless given"""

    def inner(self) -> list[str]:
        """Return the layers whose rows are not the model's outputs."""
        outputs = {list(self.shapes)[-1]} if self.outputs is None else self.outputs()
        return [name for name in self.topology.masks if name not in outputs]

    def units(self, name: str) -> Tensor:
        """Return a layer's active units, bool (unit rows, unit cols)."""
        return self.structure.units(self.topology.masks[name])

    def num_active(self, name: str) -> int:
        """Return how many units of a layer are active, on all ranks."""
        known = self.topology.num_active(name)
        return self.whole.count(self.units(name)) if known is None else known

    def allowed(self, name: str) -> Tensor:
        """Return the units of a layer that may be active."""
        units = self.units(name)
        rows = self.topology.allowed.get(name)
        return (units.new_ones(()) if rows is None else rows).expand_as(units)

    def vacant(self, name: str) -> Tensor:
        """Return the units of a layer that are not active and may be."""
        rows = self.topology.allowed.get(name)
        return ~self.units(name) if rows is None else rows & ~self.units(name)

    def scores(self, by: Criterion, name: str, purpose: str) -> Scores:
        """Return a criterion's scores of a layer's units."""
        return by.scores(self.signals(name, purpose), self.structure)

    def best(
        self,
        by: Criterion,
        name: str,
        purpose: str,
        counts: Tensor,
        candidates: Tensor,
        held: Tensor | None = None,
    ) -> Tensor:
        """Return the best candidates of each group of a layer, by a criterion.

        ``counts`` are each group's, and ``held`` its candidates, where these are counted already.
        """
        if self.structure.group == "layer":
            num = None if held is None else int(held)
            scores = self.scores(by, name, purpose)
            return self.whole.top_k_mask(scores, int(counts), candidates, num_candidates=num)
        score = by.of_units(self.signals(name, purpose), self.structure)
        return self.whole.together(partial(self.structure.top_k, score, counts, candidates))

    def filled(self, by: Criterion, name: str, purpose: str) -> Tensor:
        """Return a layer's active units, and in its vacancies the best of the others, by a criterion."""
        units, target = self.units(name), self.topology.targets[name]
        if self.structure.group == "layer" and name not in self.topology.allowed:
            num = self.num_active(name)
            if num >= target:
                return units
            scores = self.scores(by, name, purpose)
            return self.whole.filled_mask(scores, target - num, units, num_active=num)
        vacancies = self.vacancies(name)
        if not self.whole.any(vacancies > 0):
            return units
        return self.best(by, name, purpose, vacancies, self.vacant(name)).logical_or_(units)

    def vacancies(self, name: str) -> Tensor:
        """Return int64 (groups,): how many units each group of a layer lacks."""
        return self.group_counts(self.topology.targets[name], self.allowed(name)) - self.held(name)

    def held(self, name: str) -> Tensor:
        """Return int64 (groups,): how many active units each group of a layer has; a layer is one group."""
        known, units = self.topology.num_active(name), self.units(name)
        if self.structure.group != "layer" or known is None:
            return self.counts(units)
        return torch.tensor([known], device=units.device)

    def counts(self, units: Tensor) -> Tensor:
        """Return int64 (groups,): how many units of each group are set; a layer is one group."""
        if self.structure.group == "layer":
            return torch.tensor([self.whole.count(units)], device=units.device)
        return self.structure.counts(units)

    def total(self, counts: Tensor) -> int:
        """Return the sum of a layer's :meth:`counts`, over all ranks."""
        return int(counts) if self.structure.group == "layer" else self.whole.total(counts)

    def group_counts(self, target: int, allowed: Tensor) -> Tensor:
        """Return int64 (groups,): how many units each group holds, see :class:`Structure`."""
        return self.structure.group_counts(target, allowed, summed=self.whole.sum)

    def of(self, name: str) -> Context:
        """Return the context of one layer; ``shapes`` still tells its place among the others."""
        return replace(self, topology=self.topology.of(name), before=self.before.of(name))

    def with_units(
        self, units: Mapping[str, Tensor], *, num_active: Mapping[str, int] | None = None
    ) -> Topology:
        """Return the topology with other active units, and their numbers where these are known."""
        masks = self.topology.masks
        expanded = {name: self.structure.expand(units[name], _matrix(masks[name])) for name in masks}
        return self.topology.with_masks(expanded, num_active=num_active)


@dataclass(frozen=True)
class Move:
    """A step of an update, by name, with the signals it needs."""

    name: str
    apply: Callable[[Context], Topology]
    needs: frozenset[str] = frozenset()
    runs_sharded: bool = False
    """it takes what is true of a whole layer from ``Context.whole``, so a rank may hold some of its rows"""
    local: bool = False
    """a layer's outcome depends on no other layer's masks, so that layers may take their turns; on several
    threads, so it must be a pure function of the context"""
    parts: tuple[Move, ...] = ()
    """moves that it consists of, where these differ in that"""


def _matrix(mask: Tensor) -> tuple[int, int]:
    return mask.shape[0], mask.shape[1]


def run(moves: Sequence[Move], context: Context) -> Topology:
    """Apply moves one after another; return the last topology."""
    topology = context.topology
    for place, move in enumerate(moves):
        topology = move.apply(replace(context, topology=topology) if place else context)
    return topology


def by_layer(moves: Sequence[Move], context: Context) -> Callable[[str], Topology]:
    """Return what gives a layer's own topology after the moves, which are those of :func:`run`.

    From the last move that looks at several layers on, all moves run for a layer when it is asked for, so
    that scores and masks in between take the memory of one.
    """
    moves = [part for move in moves for part in move.parts or (move,)]
    first_local = max((place for place, move in enumerate(moves, 1) if not move.local), default=0)
    context = replace(context, topology=run(moves[:first_local], context))
    return lambda name: run(moves[first_local:], context.of(name))


def prune(by: Criterion, *, allocation: Allocator, protect_outputs: bool = False) -> Move:
    """Lower the targets to the scheduled sparsity and cut each layer to its best active units.

    A layer is never given more than it has: a prune does not grow. An allocation that ranks scores over all
    layers ranks magnitudes where the prune is random, for random numbers say nothing of a layer. With
    ``protect_outputs`` layers whose rows are the model's outputs stay as they are, and the sparsity is that
    of the others together.

    Raises:
        ValueError: on a run, all layers are protected, or no unit at all would stay.
    """

    def pruned(context: Context) -> list[str]:
        return context.inner() if protect_outputs else list(context.topology.masks)

    def allocate(context: Context) -> Topology:
        masks, names = context.topology.masks, pruned(context)
        if not names:
            raise ValueError(f"{', '.join(masks)}: an output layer is not pruned, and there is no other")
        layers = {
            name: LayerUnits(
                shape=context.shapes[name],
                active=context.units(name),
                score=partial(context.scores, magnitude if by is random else by, name, "prune"),
                num_weights=math.prod(context.shapes[name]),
                whole=context.whole,
                counted=context.num_active(name),
            )
            for name in names
        }
        total = min(
            num_active(sum(layer.num_units for layer in layers.values()), context.sparsity),
            sum(layer.num_active for layer in layers.values()),
        )
        if not total:
            num_units = sum(layer.num_units for layer in layers.values())
            raise ValueError(
                f"sparsity {context.sparsity:g} leaves none of {num_units} {context.structure.unit_name}: it "
                f"must be at most {1 - 1 / num_units:g}"
            )
        wanted = dict(zip(names, allocation.counts(layers, total, context.signals), strict=True))
        return replace(context.topology, requested={**context.topology.requested, **wanted})

    def cut(context: Context) -> Topology:
        topology = context.topology
        kept = {name: context.units(name) for name in topology.masks}
        targets = dict(topology.targets)
        for name in pruned(context):
            held = context.held(name)
            counts = context.group_counts(topology.requested[name], context.allowed(name))
            counts = torch.minimum(counts, held)
            kept[name] = context.best(by, name, "prune", counts, kept[name], held=held)
            targets[name] = context.total(counts)
        return replace(context.with_units(kept), targets=targets)

    parts = Move("allocate", allocate), Move("cut", cut, local=True)
    return Move(
        f"prune({by.name}, {allocation.name})",
        partial(run, parts),
        by.needs | allocation.needs,
        runs_sharded=by.runs_sharded and allocation.runs_sharded,
        parts=parts,
    )


def refill() -> Move:
    """Raise the targets to the scheduled sparsity where it has fallen, and fill them, lowest index first.

    What is added is split in proportion to the layers' inactive units, so at sparsity 0 everything is active.
    A grow fills what a drop has left open; this one adds to the targets. For ``group="layer"``,
    or at sparsity 0.
    """

    def apply(context: Context) -> Topology:
        topology = context.topology
        active = {name: context.units(name) for name in topology.masks}
        room = [context.whole.count(~units) for units in active.values()]
        num_units = sum(context.whole.count(units) for units in active.values()) + sum(room)
        added = num_active(num_units, context.sparsity) - (num_units - sum(room))
        if added <= 0:
            return topology
        filled = {
            name: units | context.whole.top_k_mask(torch.zeros_like(units, dtype=torch.uint8), more, ~units)
            for (name, units), more in zip(
                active.items(), apportion(room, added, room, none_empty=False), strict=True
            )
        }
        targets = {name: context.whole.count(units) for name, units in filled.items()}
        return context.with_units(filled).with_targets(targets)

    return Move("refill", apply, runs_sharded=True)


def drop(by: Criterion, fraction: Schedule, *, scope: Scope = "layer") -> Move:
    """Open ``int(fraction(progress) · n_active)`` vacancies, worst score first.

    In each layer, or with scope "global" over all layers by one threshold.
    """

    def apply(context: Context) -> Topology:
        share = fraction(context.progress)
        active = {name: context.units(name) for name in context.topology.masks}

        def scored(name: str) -> Scored:
            return context.scores(by, name, "drop"), active[name]

        nums = [context.num_active(name) for name in active]
        if scope == "layer":
            counts = [num - int(share * num) for num in nums]
        else:
            parts = [partial(scored, name) for name in active]
            counts = context.whole.top_k_counts(parts, sum(nums) - int(share * sum(nums)), nums=nums)
        kept = {}
        for name, num_kept, num in zip(active, counts, nums, strict=True):
            score, units = scored(name)
            kept[name] = context.whole.top_k_mask(score, num_kept, units, num_candidates=num)
        return context.with_units(kept, num_active=dict(zip(active, counts, strict=True)))

    name = f"drop({by.name}{', global' if scope == 'global' else ''})"
    return Move(name, apply, by.needs, by.runs_sharded, local=scope == "layer")


Share = Callable[[Signals, Tensor, Tensor], float]
"""(signals, mask when the update began, mask now) → a layer's share of the vacancies, at least 0.

Signals and masks may be some of the layer's rows: sums over all of them are those of ``signals.whole``.
"""


def redistribute(name: str, share: Share, needs: frozenset[str]) -> Move:
    """Move vacancies between layers, in proportion to a share of each layer; the total stays exact.

    What a full layer cannot take goes to the others. A layer of which nothing was kept gets one weight first:
    without any it would cut the network in two.

    Where groups hold fixed counts (rows, N:M), each layer's target is then rounded to what its groups can
    hold, and groups that hold more give their smallest weights away. It is the total of the last allocation
    that is shared out, not of what the last rounding made of it: the total is off by at most half a weight
    for each group, however many updates there were.

    Args:
        name: of the share, for display.
        share: see :data:`Share`.
        needs: signals that the share reads.
    """

    def apply(context: Context) -> Topology:
        topology = context.topology
        kept = {layer: context.units(layer) for layer in topology.masks}
        counts = {layer: context.whole.count(units) for layer, units in kept.items()}
        requested = {layer: topology.requested.get(layer, topology.targets[layer]) for layer in kept}
        vacancies = sum(requested.values()) - sum(counts.values())
        if vacancies < 0:  # the last rounding gave more than that away: nothing is free to move
            return topology
        shares = [
            share(context.signals(layer, "share"), context.before.masks[layer], topology.masks[layer])
            for layer in kept
        ]
        empty = [layer for layer in kept if counts[layer] == 0][:vacancies]
        first = {layer: int(layer in empty) for layer in kept}
        room = [context.whole.count(context.allowed(layer)) - counts[layer] - first[layer] for layer in kept]
        # A layer without a share still takes what no other layer has room for.
        least = max(max(shares) * 1e-9, 1e-30)
        extra = apportion(
            [max(value, least) for value in shares], vacancies - len(empty), room, none_empty=False
        )
        wanted = {layer: counts[layer] + first[layer] + more for layer, more in zip(kept, extra, strict=True)}
        return _rounded_to_groups(context, wanted)

    return Move(f"redistribute({name})", apply, needs, runs_sharded=True)


def _rounded_to_groups(context: Context, wanted: Mapping[str, int]) -> Topology:
    """Return targets near ``wanted`` that the groups can hold, with no group above its new count."""
    topology = context.topology
    if context.structure.group == "layer":
        return replace(topology, targets=dict(wanted), requested=dict(wanted))
    cut, targets = {}, {}
    for name, number in wanted.items():
        units = context.units(name)
        counts = context.group_counts(number, context.allowed(name))
        held = torch.minimum(counts, context.held(name))
        cut[name] = context.best(magnitude, name, "redistribute", held, units)
        targets[name] = context.whole.total(counts)
    return replace(context.with_units(cut), targets=targets, requested=dict(wanted))


def ablate(by: Criterion, *, gamma: float, protect_outputs: bool = True) -> Move:
    """Close rows with too few salient weights, and give their share to the others (SRigL, arXiv:2305.02299).

    A weight is salient if it was kept, or is among the best candidates for the layer's vacancies, in any row:
    so a closed row whose candidates are good enough opens again. A row with fewer salient weights than
    ``gamma`` times the fan-in is closed; as many rows with the most of them stay open as the layer's weights
    need. The new fan-in shares out what the allocation gave to the layer, not what earlier fan-ins were
    rounded to. Needs ``group="row"``. With ``protect_outputs`` rows that are the model's outputs stay.
    """

    def apply(context: Context) -> Topology:
        topology, whole = context.topology, context.whole
        masks, targets, allowed = dict(topology.masks), dict(topology.targets), dict(topology.allowed)
        for name in context.inner() if protect_outputs else list(masks):
            kept = context.units(name)
            vacancies = targets[name] - whole.count(kept)
            grown = whole.top_k_mask(context.scores(by, name, "grow"), vacancies, ~kept)
            salient = (kept | grown).sum(1, keepdim=True)
            fan_in = targets[name] / whole.count(context.allowed(name).any(1))
            open_ = salient >= gamma * fan_in
            wanted = topology.requested.get(name, targets[name])
            least = math.ceil(wanted / kept.shape[1])
            if whole.count(open_) < least:
                open_ = whole.top_k_mask(salient, least, torch.ones_like(open_))
            masks[name] = kept & open_
            allowed[name] = open_
            counts = context.group_counts(wanted, open_.expand_as(kept))
            # Where rows opened again, the fan-in falls: a row that holds more gives its weakest away.
            held = torch.minimum(counts, masks[name].sum(1))
            masks[name] = context.best(magnitude, name, "ablate", held, masks[name])
            targets[name] = whole.total(counts)
        return replace(topology.with_masks(masks), targets=targets, allowed=allowed)

    return Move(f"ablate({by.name}, {gamma:g})", apply, by.needs, by.runs_sharded, local=True)


def grow(by: Criterion, *, exclude_dropped: bool = False) -> Move:
    """Fill each layer's vacancies, best score first, among all units that were not kept.

    A weight dropped a moment ago may so come back, and then keeps its value and its optimizer state.
    ``exclude_dropped`` lets it only where too few other positions are left to keep the count exact.
    """

    def apply(context: Context) -> Topology:
        structure = context.structure

        def filled(name: str) -> Tensor:
            if not exclude_dropped:
                return context.filled(by, name, "grow")
            active, vacancies = context.units(name), context.vacancies(name)
            if not context.whole.any(vacancies > 0):
                return active
            best = partial(context.best, by, name, "grow")
            open_ = context.vacant(name)
            first = open_ & ~structure.units(context.before.masks[name])
            in_first = torch.minimum(vacancies, context.counts(first))
            grown = best(in_first, first).logical_or_(active)
            return best(vacancies - in_first, open_ & ~grown).logical_or_(grown)

        return context.with_units({name: filled(name) for name in context.topology.masks})

    return Move(f"grow({by.name})", apply, by.needs, by.runs_sharded, local=True)


def shuffle() -> Move:
    """Put each layer's active units at random positions, as many as now in each group: a control."""

    def apply(context: Context) -> Topology:
        def shuffled(name: str) -> Tensor:
            counts = context.held(name)
            return context.best(random, name, "shuffle", counts, context.allowed(name))

        return context.with_units({name: shuffled(name) for name in context.topology.masks})

    return Move("shuffle", apply, runs_sharded=True)


def adopt(masks: Mapping[str, Tensor]) -> Move:
    """Take over masks, bool (rows, cols) by layer; of a sharded layer the rows held here.

    Its application raises ``ValueError`` where the model has other layers or shapes.
    """

    def apply(context: Context) -> Topology:
        own = {name: (shape[0], math.prod(shape[1:])) for name, shape in context.shapes.items()}
        given = {name: tuple(mask.shape) for name, mask in masks.items()}
        if own != given:
            raise ValueError(f"the masks to adopt are {given}, but the model has {own}")
        adopted = {}
        for name, old in context.topology.masks.items():
            first = context.first_rows.get(name, 0)
            adopted[name] = masks[name][first : first + len(old)].to(old.device)
        return replace(
            context.topology.with_masks(adopted),
            targets={name: int(context.structure.units(masks[name]).sum()) for name in adopted},
        )

    return Move("adopt", apply, runs_sharded=True)
