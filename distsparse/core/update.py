"""A mask update: decided for each layer, agreed to by all ranks, and only then applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from distsparse.core.decision import Decision, decided
from distsparse.core.method import Method
from distsparse.core.moves import Context, Move, by_layer
from distsparse.core.signals import Signals
from distsparse.core.topology import Topology
from distsparse.core.weights import SparseWeight
from distsparse.dist import Comm, Whole, layout, verify
from distsparse.ops import counter_rng, kernels
from distsparse.ops.structure import Structure
from distsparse.ops.threads import of_each

T = TypeVar("T")
LayerSignals = Mapping[str, Mapping[str, Tensor]]
"""the tensors of :class:`~distsparse.core.signals.Signals` by layer and name"""


@dataclass(frozen=True)
class Layers:
    """The sparsified layers of a model, one after another or side by side."""

    weights: Mapping[str, SparseWeight]
    method: Method
    whole: Whole
    """of the layers, where a rank has some of their rows"""
    seed: int
    outputs: Callable[[], frozenset[str]]
    """names of those whose rows are the model's outputs"""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the output-first shape of each whole weight."""
        return {name: weight.shape for name, weight in self.weights.items()}

    def decide(
        self,
        moves: Sequence[Move],
        now: Topology,
        signals: LayerSignals,
        before: Mapping[str, Tensor] | None = None,
        *,
        step: int,
        progress: float,
        sparsity: float,
    ) -> list[Decision]:
        """Run moves; nothing is changed yet.

        Args:
            moves: of the update.
            now: what is active.
            signals: beside the weights.
            before: the masks that changes are relative to, those of ``now`` unless given.
            step: of the random numbers.
            progress: see :class:`~distsparse.core.moves.Context`.
            sparsity: likewise.
        """
        structure = self.method.structure
        first_rows = {name: weight.first_row for name, weight in self.weights.items()}
        rows = {name: weight.rows for name, weight in self.weights.items()}

        def signals_of(name: str, purpose: str) -> Signals:
            key = counter_rng.key(self.seed, step, name, purpose)
            first = first_rows[name] * structure.grid((rows[name].shape[0], rows[name].shape[1]))[1]
            return Signals(rows[name], key, first_unit=first, whole=self.whole, **signals.get(name, {}))

        context = Context(
            now,
            now,
            self.shapes,
            signals_of,
            progress,
            sparsity,
            structure,
            self.whole,
            first_rows,
            self.outputs,
        )
        topology_of = by_layer(moves, context)
        compared = now.masks if before is None else before

        def decide(name: str) -> Decision:
            shape, first = self.shapes[name], first_rows[name]
            return decided(topology_of(name), compared, structure, self.whole, shape=shape, first_row=first)

        return self.each(decide)

    def each(self, work: Callable[[str], T]) -> list[T]:
        """Return what a function makes of each layer; on several threads where compiled passes do the work.

        Torch's own operations take several threads themselves.
        """
        names = list(self.weights)
        held = [layout.local(weight.parameter.detach()) for weight in self.weights.values()]
        compiled = self.method.structure == Structure() and not self.whole.is_sharded
        compiled &= kernels.installed() and all(
            each.device.type == "cpu" and kernels.ordered(each) for each in held
        )
        if not compiled:
            return [work(name) for name in names]
        return of_each([each.numel() for each in held], lambda place: work(names[place]))


def agree(comm: Comm, decisions: Sequence[Decision], *, step: int) -> None:
    """Refuse decisions that differ between ranks, on all ranks, and counts that are not the targets.

    Raises:
        TopologyMismatch: ranks decided differently.
    """
    device = decisions[0].digest.device  # a model may lie on several
    digests = torch.stack([decision.digest.to(device) for decision in decisions])
    verify(comm, [decision.change.name for decision in decisions], digests, step=step)
    for decision in decisions:
        decision.check()
