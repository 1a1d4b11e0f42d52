"""SRigL: dynamic sparse training with structured sparsity (Lasby et al. 2024, ICLR, arXiv:2305.02299)."""

from __future__ import annotations

from distsparse.core import Method, ablate, allocator, drop, gradient, grow, magnitude, prune, random
from distsparse.methods.params import (
    Allocation,
    AllocationPower,
    Alpha,
    AlphaSchedule,
    DeltaT,
    Gamma,
    GrowInit,
    Norm,
    SkipOptimizerStep,
    Sparsity,
    TEnd,
    drop_fraction,
)
from distsparse.methods.registry import method
from distsparse.ops.schedule import constant
from distsparse.ops.structure import Structure


@method("srigl")
def srigl(
    *,
    sparsity: Sparsity = 0.9,
    delta_T: DeltaT = 100,
    alpha: Alpha = 0.3,
    alpha_schedule: AlphaSchedule = "cosine",
    T_end: TEnd = 0.75,
    allocation: Allocation = "erk",
    allocation_power: AllocationPower = 1.0,
    sensitivity_norm: Norm = "rms",
    gamma: Gamma = 0.3,
    grow_init: GrowInit = "zeros",
    skip_optimizer_step: SkipOptimizerStep = True,
) -> Method:
    """RigL with a constant fan-in in each layer; neurons with few salient weights are ablated.

    Layers whose neurons are outputs keep them all. The fan-in is rounded to whole weights, so that a count is
    a multiple of the open neurons. As many stay open as the weights need, whatever γ.
    """
    split = allocator(allocation, power=allocation_power, sensitivity_norm=sensitivity_norm)
    return Method(
        init=(prune(random, allocation=split),),
        update=(
            drop(magnitude, drop_fraction(alpha_schedule, alpha)),
            ablate(gradient, gamma=gamma),
            grow(gradient),
        ),
        sparsity=constant(sparsity),
        every=delta_T,
        stop=T_end,
        grow_init=grow_init,
        structure=Structure(group="row"),
        skip_optimizer_step=skip_optimizer_step,
    )
