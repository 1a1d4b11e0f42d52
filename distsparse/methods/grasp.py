"""GraSP: gradient signal preservation (Wang et al. 2020, ICLR, arXiv:2002.07376)."""

from __future__ import annotations

from distsparse.core import Method, allocator, gradient_flow, prune
from distsparse.methods.params import Group, Sparsity, Temperature, Tile
from distsparse.methods.registry import method
from distsparse.ops.schedule import constant
from distsparse.ops.structure import Structure


@method("grasp")
def grasp(
    *,
    sparsity: Sparsity = 0.9,
    temperature: Temperature = 200.0,
    group: Group = "layer",
    tile: Tile = (1, 1),
) -> Method:
    """Keep the weights whose removal would reduce the gradient flow most, and train them.

    The temperature of 200 is that of the authors' code; without it the choice at 98 % hardly trains.
    """
    return Method(
        init=(prune(gradient_flow, allocation=allocator("global_magnitude")),),
        sparsity=constant(sparsity),
        structure=Structure(tile=tile, group=group),
        temperature=temperature,
    )
