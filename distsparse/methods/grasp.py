"""GraSP: gradient signal preservation (Wang et al. 2020, ICLR, arXiv:2002.07376)."""

from __future__ import annotations

from distsparse.core import Method, allocator, gradient_flow, prune
from distsparse.methods.params import Sparsity
from distsparse.methods.registry import method
from distsparse.ops.schedule import constant


@method("grasp")
def grasp(*, sparsity: Sparsity = 0.9) -> Method:
    """Keep the weights whose removal would reduce the gradient flow most, and train them."""
    return Method(
        init=(prune(gradient_flow, allocation=allocator("global_magnitude")),),
        sparsity=constant(sparsity),
    )
