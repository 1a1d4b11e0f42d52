"""IMP: iterative magnitude pruning with rewinding (Frankle and Carbin 2019, arXiv:1803.03635, section 2)."""

from __future__ import annotations

import math

from distsparse.core import Method, allocator, magnitude, prune, shuffle
from distsparse.methods.params import (
    AllocationPower,
    Control,
    Group,
    PruneFraction,
    RewindTo,
    Sparsity,
    Tile,
    WeightAllocation,
)
from distsparse.methods.registry import method
from distsparse.ops.structure import Structure


@method("imp")
def imp(
    *,
    sparsity: Sparsity = 0.9,
    prune_fraction: PruneFraction = 0.2,
    rewind_to: RewindTo = 0.0,
    control: Control = "none",
    allocation: WeightAllocation = "global_magnitude",
    allocation_power: AllocationPower = 1.0,
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Train in rounds: prune the smallest weights, go back to early weights, train again.

    As many rounds as the sparsity takes, each as long as ``train.epochs``; the last prune removes only what
    is left to remove. ``rewind_to`` 0 goes back to the initialization, more to the weights at that fraction
    of the first round (arXiv:1912.05671), from where the learning rate continues as well. Each round has its
    own order of the data, and starts with a fresh optimizer state.
    """
    # A tolerance, since log(1 - 0.36) / log(0.8) is 2.0000000000000004.
    num_prunes = math.ceil(math.log(1 - sparsity) / math.log(1 - prune_fraction) - 1e-9) if sparsity else 0

    def sparsity_of(progress: float) -> float:
        return sparsity if progress >= 1 else 1 - float((1 - prune_fraction) ** round(progress * num_prunes))

    return Method(
        update=(prune(magnitude, allocation=allocator(allocation, power=allocation_power)),),
        sparsity=sparsity_of,
        structure=Structure(tile=tile, group=group),
        rounds=num_prunes + 1,
        rewind_to=rewind_to,
        last_round=(shuffle(),) if control == "shuffle" else (),
        reinitialize=control == "reinit",
    )
