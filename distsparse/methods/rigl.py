"""RigL: Rigging the Lottery, Making All Tickets Winners (Evci et al. 2020, ICML, arXiv:1911.11134)."""

from __future__ import annotations

from distsparse.core import Method, allocator, drop, gradient, grow, magnitude, prune, random
from distsparse.methods.params import (
    Allocation,
    AllocationPower,
    Alpha,
    AlphaSchedule,
    DeltaT,
    ExcludeDropped,
    GradAccumulation,
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


@method("rigl")
def rigl(
    *,
    sparsity: Sparsity = 0.9,
    delta_T: DeltaT = 100,
    alpha: Alpha = 0.3,
    alpha_schedule: AlphaSchedule = "cosine",
    T_end: TEnd = 0.75,
    allocation: Allocation = "erk",
    allocation_power: AllocationPower = 1.0,
    sensitivity_norm: Norm = "rms",
    grad_accumulation: GradAccumulation = 1,
    exclude_dropped: ExcludeDropped = False,
    grow_init: GrowInit = "zeros",
    skip_optimizer_step: SkipOptimizerStep = True,
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Exchange a fraction of the weakest weights for those with the largest gradient.

    The paper updates at steps t < ``T_end``; here the last update may be at ``T_end`` itself, where the
    cosine schedule exchanges nothing. ``grad_accumulation`` 1, ``exclude_dropped`` false and ``grow_init``
    zeros are the paper's algorithm; other values are additions.
    """
    split = allocator(allocation, power=allocation_power, sensitivity_norm=sensitivity_norm)
    return Method(
        init=(prune(random, allocation=split),),
        update=(
            drop(magnitude, drop_fraction(alpha_schedule, alpha)),
            grow(gradient, exclude_dropped=exclude_dropped),
        ),
        sparsity=constant(sparsity),
        every=delta_T,
        stop=T_end,
        gradient_window=grad_accumulation,
        grow_init=grow_init,
        skip_optimizer_step=skip_optimizer_step,
        structure=Structure(tile=tile, group=group),
    )
