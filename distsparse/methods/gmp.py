"""GMP: gradual magnitude pruning (Zhu and Gupta 2017, arXiv:1710.01878)."""

from __future__ import annotations

from distsparse.core import Method, allocator, magnitude, prune
from distsparse.methods.params import (
    AllocationPower,
    DeltaT,
    Group,
    InitialSparsity,
    Norm,
    PruneAllocation,
    Sparsity,
    TEnd,
    Tile,
    TStart,
)
from distsparse.methods.registry import method
from distsparse.ops.schedule import cubic
from distsparse.ops.structure import Structure


@method("gmp")
def gmp(
    *,
    sparsity: Sparsity = 0.9,
    initial_sparsity: InitialSparsity = 0.0,
    delta_T: DeltaT = 100,
    T_start: TStart = 0.0,
    T_end: TEnd = 0.75,
    allocation: PruneAllocation = "uniform",
    allocation_power: AllocationPower = 1.0,
    sensitivity_norm: Norm = "rms",
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Start dense, and prune the smallest weights along a cubic sparsity schedule.

    In the paper a masked weight keeps its value and is ranked again at every update, so that it can come
    back; here it is set to zero, and stays pruned.
    """
    split = allocator(allocation, power=allocation_power, sensitivity_norm=sensitivity_norm)
    return Method(
        update=(prune(magnitude, allocation=split),),
        sparsity=cubic(sparsity, initial_sparsity),
        every=delta_T,
        start=T_start,
        stop=T_end,
        structure=Structure(tile=tile, group=group),
    )
