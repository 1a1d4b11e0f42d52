"""MEST: memory-economic sparse training on the edge (Yuan et al. 2021, NeurIPS, arXiv:2110.14032)."""

from __future__ import annotations

from distsparse.core import Method, allocator, drop, grow, magnitude_and_gradient, prune, random
from distsparse.methods.params import (
    Allocation,
    AllocationPower,
    Alpha,
    AlphaSchedule,
    DeltaT,
    Group,
    GrowInit,
    GrowScale,
    Norm,
    Sparsity,
    TEnd,
    Tile,
    drop_fraction,
)
from distsparse.methods.registry import method
from distsparse.ops.schedule import constant
from distsparse.ops.structure import Structure


@method("mest")
def mest(
    *,
    sparsity: Sparsity = 0.9,
    delta_T: DeltaT = 100,
    alpha: Alpha = 0.3,
    alpha_schedule: AlphaSchedule = "linear",
    T_end: TEnd = 0.75,
    allocation: Allocation = "uniform",
    allocation_power: AllocationPower = 1.0,
    sensitivity_norm: Norm = "rms",
    gradient_weight: GrowScale = 1.0,
    grow_init: GrowInit = "zeros",
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Drop the smallest |w| + λ|g|, and grow at random.

    This is the paper's MEST+EM: α falls during the training (elastic mutation), here on a line and until
    ``T_end``, in the authors' scripts in steps. Without the soft memory bound (MEST+EM&S), which grows before
    it drops and so exceeds the sparsity for a time, and without the removal of examples (data efficiency).
    """
    split = allocator(allocation, power=allocation_power, sensitivity_norm=sensitivity_norm)
    return Method(
        init=(prune(random, allocation=split),),
        update=(
            drop(magnitude_and_gradient(gradient_weight), drop_fraction(alpha_schedule, alpha)),
            grow(random),
        ),
        sparsity=constant(sparsity),
        every=delta_T,
        stop=T_end,
        grow_init=grow_init,
        structure=Structure(tile=tile, group=group),
    )
