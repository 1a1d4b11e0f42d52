"""SNIP: single-shot network pruning based on connection sensitivity (Lee et al. 2019, arXiv:1810.02340)."""

from __future__ import annotations

from distsparse.core import Method, allocator, prune, saliency
from distsparse.methods.params import Group, Sparsity, Tile
from distsparse.methods.registry import method
from distsparse.ops.schedule import constant
from distsparse.ops.structure import Structure


@method("snip")
def snip(*, sparsity: Sparsity = 0.9, group: Group = "layer", tile: Tile = (1, 1)) -> Method:
    """Keep the weights with the largest |g · w| at the initialization, and train them."""
    return Method(
        init=(prune(saliency, allocation=allocator("global_magnitude")),),
        sparsity=constant(sparsity),
        structure=Structure(tile=tile, group=group),
    )
