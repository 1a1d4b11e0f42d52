"""Masks at one bit a flag: an eighth of a bool mask's memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from distsparse.ops import kernels

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
    missing = -mask.shape[1] % FLAGS
    flags = (pad(mask, (0, missing)) if missing else mask).contiguous()
    if mask.device.type == "cpu":
        words = np.packbits(flags.numpy().reshape(-1), bitorder="little").view(np.int64)
        return torch.from_numpy(words).view(len(mask), flags.shape[1] // FLAGS)
    return gathered(flags)


def gathered(flags: Tensor) -> Tensor:
    """Return :func:`pack`'s words of flags with whole words in a row, on any device."""
    return flags.view(torch.int64).mul(_GATHER).bitwise_right_shift_(56).to(torch.uint8).view(torch.int64)


def unpack(words: Tensor, cols: int) -> Tensor:
    """Return the bool (rows, cols) mask of :func:`pack`'s words."""
    if cols == FLAGS * words.shape[1] and kernels.usable(words.view(torch.uint8)):
        return kernels.unpack(words)
    if words.device.type == "cpu":
        flags = torch.from_numpy(np.unpackbits(words.view(torch.uint8).numpy(), axis=1, bitorder="little"))
        return flags.view(torch.bool)[:, :cols].contiguous()
    return spread(words)[:, :cols].contiguous()


def spread(words: Tensor) -> Tensor:
    """Return the flags of words, 64 each, on any device."""
    copies = words.view(torch.uint8).to(torch.int64).mul_(_COPIES).bitwise_and_(_DIAGONAL)
    return copies.add_(_CARRY).bitwise_right_shift_(7).bitwise_and_(_COPIES).view(torch.bool)
