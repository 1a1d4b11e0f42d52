"""GraNet: gradual pruning with zero-cost neuroregeneration (Liu et al. 2021, NeurIPS, arXiv:2106.10404)."""

from __future__ import annotations

from distsparse.core import Method, allocator, drop, gradient, grow, magnitude, prune, random
from distsparse.methods.params import (
    Allocation,
    AllocationPower,
    Alpha,
    AlphaSchedule,
    DeltaT,
    Group,
    GrowInit,
    InitialSparsity,
    Norm,
    Sparsity,
    TEnd,
    Tile,
    drop_fraction,
)
from distsparse.methods.registry import method
from distsparse.ops.schedule import cubic
from distsparse.ops.structure import Structure


@method("granet")
def granet(
    *,
    sparsity: Sparsity = 0.9,
    initial_sparsity: InitialSparsity = 0.5,
    delta_T: DeltaT = 100,
    alpha: Alpha = 0.3,
    alpha_schedule: AlphaSchedule = "cosine",
    T_end: TEnd = 0.75,
    allocation: Allocation = "erk",
    allocation_power: AllocationPower = 1.0,
    sensitivity_norm: Norm = "rms",
    grow_init: GrowInit = "zeros",
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Prune by magnitude over all layers along a cubic schedule, and exchange weights as RigL does.

    ``initial_sparsity`` 0 is the paper's dense-to-sparse, 0.5 its sparse-to-sparse training.
    """
    split = allocator(allocation, power=allocation_power, sensitivity_norm=sensitivity_norm)
    return Method(
        init=(prune(random, allocation=split),),
        update=(
            prune(magnitude, allocation=allocator("global_magnitude")),
            drop(magnitude, drop_fraction(alpha_schedule, alpha)),
            grow(gradient),
        ),
        sparsity=cubic(sparsity, initial_sparsity),
        every=delta_T,
        stop=T_end,
        grow_init=grow_init,
        structure=Structure(tile=tile, group=group),
    )
