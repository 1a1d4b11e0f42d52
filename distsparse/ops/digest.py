"""A 64-bit digest of a mask, equal on all ranks if and (all but surely) only if the masks are equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from distsparse.ops import counter_rng


def mask_digest(mask: Tensor) -> Tensor:
    """Return a 0-dim int64 digest of a bool mask of any shape.

    Eight flags are read as one word, so the cost is a few operations per eight weights.
    """
    flags = mask.reshape(-1).to(torch.uint8)
    words = pad(flags, (0, -flags.numel() % 8)).view(torch.int64)
    index = torch.arange(words.numel(), device=mask.device)
    # Words hold 0/1 bytes only, so a sum of word and counter could collide by carries; two mixes cannot be
    # undone by moving a flag to another word.
    return counter_rng.mix(words ^ counter_rng.mix(index)).sum()


def to_hex(digest: int) -> str:
    """Return a digest as 16 hexadecimal characters."""
    return f"{digest & 0xFFFFFFFFFFFFFFFF:016x}"
