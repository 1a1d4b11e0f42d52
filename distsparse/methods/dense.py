"""Dense training: every weight active, the baseline of all comparisons."""

from __future__ import annotations

from distsparse.core import Method
from distsparse.methods.registry import method
from distsparse.ops.schedule import constant


@method("dense")
def dense() -> Method:
    """Train all weights."""
    return Method(sparsity=constant(0.0))
