"""SNFS: Sparse Networks From Scratch (Dettmers and Zettlemoyer 2019, arXiv:1907.04840)."""

from __future__ import annotations

from torch import Tensor

from distsparse.core import (
    Method,
    Signals,
    allocator,
    drop,
    grow,
    magnitude,
    momentum,
    prune,
    random,
    redistribute,
)
from distsparse.methods.params import (
    Allocation,
    AllocationPower,
    Alpha,
    AlphaSchedule,
    DeltaT,
    Group,
    GrowInit,
    Norm,
    Sparsity,
    TEnd,
    Tile,
    drop_fraction,
)
from distsparse.methods.registry import method
from distsparse.ops.schedule import constant
from distsparse.ops.structure import Structure


@method("snfs")
def snfs(
    *,
    sparsity: Sparsity = 0.9,
    delta_T: DeltaT = 100,
    alpha: Alpha = 0.3,
    alpha_schedule: AlphaSchedule = "cosine",
    T_end: TEnd = 0.75,
    allocation: Allocation = "uniform",
    allocation_power: AllocationPower = 1.0,
    sensitivity_norm: Norm = "rms",
    grow_init: GrowInit = "zeros",
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Move the weakest weights to the layers, and within them to the weights, with the largest momentum.

    The momentum is a moving average (0.9) of the dense gradient, whatever the optimizer. The paper prunes
    once per epoch until the end; here every ``delta_T`` steps until ``T_end``.
    """
    split = allocator(allocation, power=allocation_power, sensitivity_norm=sensitivity_norm)
    return Method(
        init=(prune(random, allocation=split),),
        update=(
            drop(magnitude, drop_fraction(alpha_schedule, alpha)),
            redistribute("mean momentum of active weights", _mean_momentum, momentum.needs),
            grow(momentum),
        ),
        sparsity=constant(sparsity),
        every=delta_T,
        stop=T_end,
        structure=Structure(tile=tile, group=group),
        grow_init=grow_init,
    )


def _mean_momentum(signals: Signals, active: Tensor, kept: Tensor) -> float:
    """Return the mean |momentum| of the weights that were active before the drop (algorithm 1)."""
    return signals.whole.mean(momentum.score(signals)[active])
