"""What a criterion may look at in one layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distsparse.ops import counter_rng


@dataclass(frozen=True)
class Signals:
    """The tensors of one layer, all (rows, cols).

    Gradients are means over the global batch, already reduced over ranks.
    """

    weight: Tensor
    key: int
    """Key of this layer's random numbers at this step and for this move."""
    grad: Tensor | None = None
    grad_abs: Tensor | None = None
    """Sum of |grad| over the method's gradient window (the last step alone by default)."""

    def random_bits(self) -> Tensor:
        """Return 64 random bits per weight (int64), a function of key and position only."""
        index = torch.arange(self.weight.numel(), device=self.weight.device)
        return counter_rng.bits(self.key, index).reshape(self.weight.shape)
