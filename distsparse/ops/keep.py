"""Zeroing of what is not to be kept, in place and as fast as memory allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distsparse.ops import kernels

_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Keep:
    """Which entries of a parameter, its gradient and its optimizer state are kept."""

    mask: Tensor
    """bool, of the parameter's shape."""
    bits: Tensor | None
    """all-ones integers where the mask is True, of the parameter's size and layout.

    None where a compiled pass reads the mask."""

    @classmethod
    def of(cls, mask: Tensor, parameter: Tensor, *, old: Keep | None = None) -> Keep:
        """Keep a parameter's entries where ``mask`` is True; the memory of ``old`` is used again."""
        if kernels.usable(mask, parameter):
            return cls(mask, None)
        bits = old.bits if old else None
        if bits is None:
            bits = torch.empty_like(parameter, dtype=_SAME_SIZE[parameter.element_size()])
        # A byte -1 is widened to all ones.
        return cls(mask, bits.copy_(mask.view(torch.int8).neg()))

    def apply(self, *tensors: Tensor) -> None:
        """Set entries to exactly +0 in place where they are not kept, NaN and infinity included.

        A bitwise and of the numbers' own bits: ten times as fast on a CPU as a fill by a random bool mask,
        and unlike a product it leaves neither -0 nor NaN. Works on a leaf that requires grad.
        """
        together: dict[int, list[Tensor]] = {}
        for tensor in (each.detach() for each in tensors):
            if self.bits is None and kernels.usable(self.mask, tensor):
                together.setdefault(tensor.element_size(), []).append(tensor)
            elif self.bits is not None and tensor.element_size() == self.bits.element_size():
                tensor.view(self.bits.dtype).bitwise_and_(self.bits)
            else:
                tensor.masked_fill_(~self.mask, 0)
        for of_a_size in together.values():
            kernels.zero_inactive(self.mask, of_a_size)
