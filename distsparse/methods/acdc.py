"""AC/DC: alternating compressed and decompressed training (Peste et al. 2021, NeurIPS, arXiv:2106.12379)."""

from __future__ import annotations

from dataclasses import replace

from distsparse.core import Context, Method, Move, Topology, allocator, magnitude, prune, refill
from distsparse.methods.params import (
    AllocationPower,
    DeltaT,
    Group,
    Norm,
    PruneAllocation,
    Sparsity,
    TEnd,
    Tile,
    TStart,
)
from distsparse.methods.registry import method
from distsparse.ops.schedule import alternating, constant
from distsparse.ops.structure import Structure


@method("acdc")
def acdc(
    *,
    sparsity: Sparsity = 0.9,
    delta_T: DeltaT = 100,
    T_start: TStart = 0.1,
    T_end: TEnd = 0.85,
    allocation: PruneAllocation = "global_magnitude",
    allocation_power: AllocationPower = 1.0,
    sensitivity_norm: Norm = "rms",
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Train dense, then in turn compressed to the largest weights of all and decompressed to all weights.

    ``delta_T`` is the length of a phase. The first compression is at the first multiple of it from
    ``T_start`` on; the last multiple up to ``T_end`` always compresses, for the rest of the run. If that were
    the turn of a decompression, the compressed phase before it goes on.

    Weights that come back start at zero, as in the paper, and so does their optimizer state. The paper resets
    the momentum of all weights when it decompresses; here that of the weights that were active goes on.
    """
    return Method(
        update=(
            prune(
                magnitude,
                allocation=allocator(allocation, power=allocation_power, sensitivity_norm=sensitivity_norm),
            ),
            _decompress(),
        ),
        sparsity=constant(sparsity),
        phases=alternating(sparsity),
        every=delta_T,
        start=T_start,
        stop=T_end,
        structure=Structure(tile=tile, group=group),
    )


def _decompress() -> Move:
    """Return a refill for decompressed phases alone: in compressed ones groups may hold a little less."""
    filled = refill()

    def apply(context: Context) -> Topology:
        return context.topology if context.sparsity else filled.apply(context)

    return replace(filled, apply=apply)
