"""RigL-S: RigL over whole channels; moves of Evci et al. 2020, ICML, arXiv:1911.11134, on rows of a layer."""

from __future__ import annotations

from dataclasses import replace

from distsparse.core import Method, allocator, drop, gradient, grow, magnitude, prune, random
from distsparse.methods.params import (
    Allocation,
    AllocationPower,
    Alpha,
    AlphaSchedule,
    DeltaT,
    ExcludeDropped,
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


@method("rigl_structured")
def rigl_structured(
    *,
    sparsity: Sparsity = 0.5,
    delta_T: DeltaT = 100,
    alpha: Alpha = 0.3,
    alpha_schedule: AlphaSchedule = "cosine",
    T_end: TEnd = 0.75,
    allocation: Allocation = "uniform",
    allocation_power: AllocationPower = 1.0,
    sensitivity_norm: Norm = "rms",
    exclude_dropped: ExcludeDropped = True,
    grow_init: GrowInit = "normal",
    skip_optimizer_step: SkipOptimizerStep = True,
) -> Method:
    """Exchange the output channels (neurons) of the least L1 norm for those of the largest gradient norm.

    ``sparsity`` is the inactive fraction of the channels of all sparsified layers but those whose outputs
    are the model's, which stay. An inactive channel has no weight, no bias, and of the batch normalisation
    behind it no bias and no running mean: it is exactly zero through BatchNorm and ReLU, and can be removed
    at export. In a model that ``torch.fx`` cannot trace only the layer's own bias is known to belong to it.

    The derivative of ReLU at 0 is 0, so no gradient reaches an inactive channel in front of one. Equal
    gradients are therefore ranked at random, and a channel just dropped, which has a gradient, is not grown
    at once. The gradient decides where it arrives: at an addition, at GELU, SiLU or tanh. For the same reason
    a channel that starts at zero would stay dead, and so grown ones start at small normal values. The running
    variance of a grown channel has decayed, and needs some training steps before an evaluation can trust it.
    """
    return Method(
        init=(
            prune(
                random,
                allocation=allocator(allocation, power=allocation_power, sensitivity_norm=sensitivity_norm),
                protect_outputs=True,
            ),
        ),
        update=(
            drop(magnitude, drop_fraction(alpha_schedule, alpha)),
            grow(replace(gradient, random_ties=True), exclude_dropped=exclude_dropped),
        ),
        sparsity=constant(sparsity),
        every=delta_T,
        stop=T_end,
        grow_init=grow_init,
        skip_optimizer_step=skip_optimizer_step,
        structure=Structure(tile=(1, -1)),
    )
