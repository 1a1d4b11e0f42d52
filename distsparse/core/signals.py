"""What a criterion may look at in one layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distsparse.ops import counter_rng


@dataclass(frozen=True)
class Signals:
    """The tensors of one layer, (rows, cols) unless stated.

    Gradients are means over the global batch, already reduced over ranks.
    """

    weight: Tensor
    key: int
    """Key of this layer's random numbers at this step and for this move."""
    grad: Tensor | None = None
    grad_abs: Tensor | None = None
    """Sum of |grad| over the method's gradient window (the last step alone by default)."""
    grad_ema: Tensor | None = None
    """Exponential moving average of the gradient of every weight, active or not."""
    hessian_grad: Tensor | None = None
    """Hessian times gradient, at the initialization."""
    flow: Tensor | None = None
    """Gradient of SynFlow's data-free objective with respect to |w|, at the initialization."""
    loss_curve: Tensor | None = None
    """float64 (points, 2) of (sparsity, loss increase) as this layer alone is pruned, before step 0."""

    def random_bits(self, shape: tuple[int, int]) -> Tensor:
        """Return 64 random bits (int64) for each of (rows, cols) units: of key and position only."""
        index = torch.arange(shape[0] * shape[1], device=self.weight.device)
        return counter_rng.bits(self.key, index).reshape(shape)
