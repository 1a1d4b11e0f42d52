"""DSR: Dynamic Sparse Reparameterization (Mostafa and Wang 2019, arXiv:1902.05967)."""

from __future__ import annotations

from torch import Tensor

from distsparse.core import Method, Signals, allocator, drop, grow, magnitude, prune, random, redistribute
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


@method("dsr")
def dsr(
    *,
    sparsity: Sparsity = 0.9,
    delta_T: DeltaT = 100,
    alpha: Alpha = 0.1,
    alpha_schedule: AlphaSchedule = "constant",
    T_end: TEnd = 0.75,
    allocation: Allocation = "uniform",
    allocation_power: AllocationPower = 1.0,
    sensitivity_norm: Norm = "rms",
    grow_init: GrowInit = "zeros",
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Drop by one global threshold, and grow at random in proportion to the survivors of each layer.

    The paper adapts the threshold so that about a given number of weights falls below it; here the threshold
    is the one that drops exactly the fraction α of all active weights. A weight just dropped is not grown,
    and a layer without survivors, whose share would be nothing, gets one weight.
    """
    split = allocator(allocation, power=allocation_power, sensitivity_norm=sensitivity_norm)
    return Method(
        init=(prune(random, allocation=split),),
        update=(
            drop(magnitude, drop_fraction(alpha_schedule, alpha), scope="global"),
            redistribute("survivors", _survivors, frozenset()),
            grow(random, exclude_dropped=True),
        ),
        sparsity=constant(sparsity),
        every=delta_T,
        stop=T_end,
        structure=Structure(tile=tile, group=group),
        grow_init=grow_init,
    )


def _survivors(signals: Signals, active: Tensor, kept: Tensor) -> float:
    return float(signals.whole.count(kept))
