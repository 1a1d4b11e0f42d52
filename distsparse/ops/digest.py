"""A 64-bit digest of a mask, equal on all ranks if and (all but surely) only if the masks are equal."""

from __future__ import annotations

import torch
from torch import Tensor

from distsparse.ops import counter_rng
from distsparse.ops.packed import pack


def mask_digest(mask: Tensor, *, first_row: int = 0) -> Tensor:
    """Return a 0-dim int64 digest of a bool mask, (rows, cols) or one row; see :func:`packed_digest`."""
    return packed_digest(pack(mask.reshape(1, -1) if mask.ndim < 2 else mask), first_row=first_row)


def packed_digest(words: Tensor, *, first_row: int = 0) -> Tensor:
    """Return the digest of a packed mask: a sum over its words, modulo 2^64.

    Args:
        words: int64 (rows, words of a row), see :func:`~distsparse.ops.packed.pack`.
        first_row: of a shard, its place in the whole: the digests of all shards add up to the whole's.
    """
    index = torch.arange(words.numel(), device=words.device).add_(first_row * words.shape[1])
    # A sum of word and counter could collide by carries; two mixes cannot be undone by moving a flag to
    # another word.
    return counter_rng.mix(words.reshape(-1) ^ counter_rng.mix(index)).sum()


def to_hex(digest: int) -> str:
    """Return a digest as 16 hexadecimal characters."""
    return f"{digest & 0xFFFFFFFFFFFFFFFF:016x}"
