"""SynFlow: iterative synaptic flow pruning, without data (Tanaka et al. 2020, arXiv:2006.05467)."""

from __future__ import annotations

from distsparse.core import Method, allocator, prune, synaptic_flow
from distsparse.methods.params import Group, InitRounds, Sparsity, Tile
from distsparse.methods.registry import method
from distsparse.ops.schedule import constant
from distsparse.ops.structure import Structure


@method("synflow")
def synflow(
    *,
    sparsity: Sparsity = 0.9,
    rounds: InitRounds = 100,
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Prune in rounds by data-free synaptic flow at the initialization, and train what is left."""
    return Method(
        init=(prune(synaptic_flow, allocation=allocator("global_magnitude")),),
        sparsity=constant(sparsity),
        structure=Structure(tile=tile, group=group),
        init_rounds=rounds,
    )
