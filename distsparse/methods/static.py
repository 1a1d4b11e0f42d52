"""Static sparse training, the baseline of RigL (Evci et al. 2020, arXiv:1911.11134, section 4)."""

from __future__ import annotations

from distsparse.core import Method, allocator, prune, random
from distsparse.methods.params import Allocation, Group, Norm, Sparsity, Tile
from distsparse.methods.registry import method
from distsparse.ops.schedule import constant
from distsparse.ops.structure import Structure


@method("static")
def static(
    *,
    sparsity: Sparsity = 0.9,
    allocation: Allocation = "erk",
    sensitivity_norm: Norm = "rms",
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Train a random sparse topology that never changes."""
    return Method(
        init=(prune(random, allocation=allocator(allocation, sensitivity_norm=sensitivity_norm)),),
        sparsity=constant(sparsity),
        structure=Structure(tile=tile, group=group),
    )
