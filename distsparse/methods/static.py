"""Static sparse training, the baseline of RigL (Evci et al. 2020, arXiv:1911.11134, section 4)."""

from __future__ import annotations

from distsparse.core import Method, allocator, prune, random
from distsparse.methods.params import (
    Allocation,
    AllocationPower,
    Group,
    Norm,
    Sparsity,
    Tile,
)
from distsparse.methods.registry import method
from distsparse.ops.schedule import constant
from distsparse.ops.structure import Structure


@method("static")
def static(
    *,
    sparsity: Sparsity = 0.9,
    allocation: Allocation = "erk",
    allocation_power: AllocationPower = 1.0,
    sensitivity_norm: Norm = "rms",
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Train a random sparse topology that never changes."""
    split = allocator(allocation, power=allocation_power, sensitivity_norm=sensitivity_norm)
    return Method(
        init=(prune(random, allocation=split),),
        sparsity=constant(sparsity),
        structure=Structure(tile=tile, group=group),
    )
