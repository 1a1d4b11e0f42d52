"""What an update decided for one layer, before it is applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from distsparse.core.events import LayerChange
from distsparse.core.topology import Topology
from distsparse.ops.digest import packed_digest, to_hex
from distsparse.ops.flags import count
from distsparse.ops.packed import pack, unpack
from distsparse.ops.structure import Structure


@dataclass(frozen=True)
class Decision:
    """A layer's next topology, small enough to keep all layers' until every rank has agreed to them."""

    change: LayerChange
    digest: Tensor
    """0-dim int64."""
    topology: Topology
    """of the layer alone, its mask packed."""
    num_units: int
    """active units."""

    def check(self) -> None:
        """Refuse a mask without exactly its target of active units."""
        name = self.change.name
        target = self.topology.targets[name]
        assert self.num_units == target, f"{name}: {self.num_units} active, target {target}"

    def merged(self, topology: Topology) -> Topology:
        """Return the topology of all layers with this one's part replaced."""
        name, cols = self.change.name, topology.masks[self.change.name].shape[1]
        mask = unpack(self.topology.masks[name], cols)
        return Topology(
            {**topology.masks, name: mask},
            {**topology.targets, **self.topology.targets},
            {**topology.allowed, **self.topology.allowed},
            {**topology.requested, **self.topology.requested},
        )


def decided(topology: Topology, before: Mapping[str, Tensor], structure: Structure) -> Decision:
    """Return the decision for a topology of one layer; ``before`` holds the masks it is compared with."""
    ((name, mask),) = topology.masks.items()
    nnz, num_before = count(mask), count(before[name])
    num_changed = count(mask ^ before[name])
    num_dropped = (num_changed + num_before - nnz) // 2
    words = pack(mask)
    digest = packed_digest(words)
    change = LayerChange(
        name=name,
        num_dropped=num_dropped,
        num_grown=num_changed - num_dropped,
        nnz=nnz,
        num_weights=mask.numel(),
        fraction=num_dropped / num_before if num_before else 0.0,
        digest=to_hex(int(digest)),
    )
    num_units = nnz if structure.tile == (1, 1) else count(structure.units(mask))
    return Decision(change, digest, replace(topology, masks={name: words}), num_units)
