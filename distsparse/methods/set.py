"""SET: Sparse Evolutionary Training (Mocanu et al. 2018, Nature Communications 9:2383, arXiv:1707.04780)."""

from __future__ import annotations

from distsparse.core import Method, allocator, drop, grow, magnitude, prune, random
from distsparse.methods.params import (
    Allocation,
    AllocationPower,
    Alpha,
    AlphaSchedule,
    DeltaT,
    ExcludeDropped,
    Group,
    GrowInit,
    Norm,
    SkipOptimizerStep,
    Sparsity,
    TEnd,
    Tile,
    drop_fraction,
)
from distsparse.methods.registry import method
from distsparse.ops.schedule import constant
from distsparse.ops.structure import Structure


@method("set")
def set_(
    *,
    sparsity: Sparsity = 0.9,
    delta_T: DeltaT = 100,
    alpha: Alpha = 0.3,
    alpha_schedule: AlphaSchedule = "constant",
    T_end: TEnd = 0.75,
    allocation: Allocation = "er",
    allocation_power: AllocationPower = 1.0,
    sensitivity_norm: Norm = "rms",
    exclude_dropped: ExcludeDropped = False,
    grow_init: GrowInit = "zeros",
    skip_optimizer_step: SkipOptimizerStep = True,
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Exchange a fraction of the weakest weights for random ones.

    The paper updates once per epoch until the end; here every ``delta_T`` steps until ``T_end``, as the
    published comparisons with RigL do. The paper drops the same fraction of the positive weights, the
    smallest, and of the negative ones, the largest; here the smallest by absolute value, whatever their
    signs. The paper starts grown weights at random values; here they start at zero, and with ``grow_init``
    normal at small random ones.
    """
    split = allocator(allocation, power=allocation_power, sensitivity_norm=sensitivity_norm)
    return Method(
        init=(prune(random, allocation=split),),
        update=(
            drop(magnitude, drop_fraction(alpha_schedule, alpha)),
            grow(random, exclude_dropped=exclude_dropped),
        ),
        sparsity=constant(sparsity),
        every=delta_T,
        stop=T_end,
        grow_init=grow_init,
        skip_optimizer_step=skip_optimizer_step,
        structure=Structure(tile=tile, group=group),
    )
