"""What an update decided for one layer, before it is applied."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distsparse.core.events import LayerChange
from distsparse.core.topology import Topology
from distsparse.dist import Whole
from distsparse.ops.compare import compare
from distsparse.ops.digest import to_hex
from distsparse.ops.flags import count
from distsparse.ops.packed import unpack
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

    def mask(self, *, cols: int) -> Tensor:
        """Return the layer's next mask, bool (rows, cols)."""
        return unpack(self.topology.masks[self.change.name], cols)


def decided(
    topology: Topology,
    before: Mapping[str, Tensor],
    structure: Structure,
    whole: Whole,
    *,
    shape: tuple[int, ...],
    first_row: int = 0,
) -> Decision:
    """Return the decision for a topology of one layer.

    Args:
        topology: of the layer; of a sharded one the rows of this process.
        before: the masks that it is compared with.
        structure: tiles and groups.
        whole: sums over all rows of the layer.
        shape: of the whole weight.
        first_row: the place of the rows here in the whole.
    """
    ((name, mask),) = topology.masks.items()
    found = compare(mask, before[name], first_row=first_row)
    numbers = [found.num, found.num_before, found.num_changed]
    numbers.append(found.num if structure.tile == (1, 1) else count(structure.units(mask)))
    digest = found.digest
    if whole.is_sharded:
        *numbers, total = whole.sum(torch.stack([*map(digest.new_tensor, numbers), digest])).tolist()
        digest = digest.new_tensor(total)
    nnz, num_before, num_changed, num_units = numbers
    num_dropped = (num_changed + num_before - nnz) // 2
    change = LayerChange(
        name=name,
        num_dropped=num_dropped,
        num_grown=num_changed - num_dropped,
        nnz=nnz,
        num_weights=math.prod(shape),
        fraction=num_dropped / num_before if num_before else 0.0,
        digest=to_hex(int(digest)),
    )
    return Decision(change, digest, topology.with_masks({name: found.words}), num_units)
