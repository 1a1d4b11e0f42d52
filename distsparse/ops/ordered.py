"""Numbers as integers in the same order, so that digits of them can be counted."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = -(1 << 63)


def width(dtype: torch.dtype) -> int:
    """Return the number of bits that :func:`ordered` makes of a number."""
    if dtype.is_floating_point:
        return 64 if dtype == torch.float64 else 32
    return torch.iinfo(dtype).bits


def ordered(values: Tensor) -> Tensor:
    """Return int64 words whose lowest :func:`width` bits, read as an unsigned number, order as the values do.

    Equal values, 0 and -0 among them, have equal words. NaN is refused by none and has a word past infinity.
    """
    if not values.is_floating_point():
        return values.to(torch.int64) ^ _LEAST if width(values.dtype) == 64 else _offset(values)
    wide = width(values.dtype) == 64
    # -0 + 0 is 0; a sign bit and a magnitude become two's complement, then an offset from the least.
    floats = values.to(torch.float64 if wide else torch.float32) + 0.0
    bits = floats.view(torch.int64 if wide else torch.int32)
    signed = torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)
    return signed ^ _LEAST if wide else _offset(signed)


def _offset(values: Tensor) -> Tensor:
    return values.to(torch.int64) - torch.iinfo(values.dtype).min
