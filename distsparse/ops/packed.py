"""Masks at one bit a flag: an eighth of a bool mask's memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

FLAGS = 64
"""flags in a word"""

# Flag i is bit 8i of a word of eight bools; the product puts it to bit 56 + i, and all else below or past 64.
_GATHER = 0x0102040810204080
# The opposite: eight copies of a byte, of which copy i keeps bit i; 0x7F then carries it to its top bit.
_COPIES = 0x0101010101010101
_DIAGONAL = 0x8040201008040201 - (1 << 64)
_CARRY = 0x7F7F7F7F7F7F7F7F


def pack(mask: Tensor) -> Tensor:
    """Return a bool (rows, cols) mask as int64 (rows, ⌈cols / 64⌉): column c is bit c % 64 of word c // 64.

    A row begins with a word of its own, so a shard of rows has the words that the whole has for them.
    """
    flags = pad(mask, (0, -mask.shape[1] % FLAGS)).contiguous().view(torch.int64)
    return flags.mul(_GATHER).bitwise_right_shift_(56).to(torch.uint8).view(torch.int64)


def unpack(words: Tensor, cols: int) -> Tensor:
    """Return the bool (rows, cols) mask of :func:`pack`'s words."""
    copies = words.view(torch.uint8).to(torch.int64).mul_(_COPIES).bitwise_and_(_DIAGONAL)
    flags = copies.add_(_CARRY).bitwise_right_shift_(7).bitwise_and_(_COPIES)
    return flags.view(torch.bool)[:, :cols].contiguous()
