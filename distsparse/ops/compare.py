"""What an update needs to know of a layer's new mask beside the old one."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from distsparse.ops import kernels
from distsparse.ops.digest import packed_digest
from distsparse.ops.flags import count
from distsparse.ops.packed import FLAGS, pack


class Comparison(NamedTuple):
    """A mask, packed, and how it differs from an earlier one."""

    words: Tensor
    """see :func:`~distsparse.ops.packed.pack`."""
    digest: Tensor
    """see :func:`~distsparse.ops.digest.packed_digest`."""
    num: int
    """flags that are set."""
    num_before: int
    """flags that were set."""
    num_changed: int
    """flags that differ."""


def compare(mask: Tensor, before: Tensor, *, first_row: int = 0) -> Comparison:
    """Compare two bool (rows, cols) masks; ``first_row`` is a shard's place in the whole."""
    if mask.shape[1] % FLAGS == 0 and kernels.usable(mask, before):
        return Comparison(*kernels.pack_beside(mask, before, first_row * mask.shape[1] // FLAGS))
    words = pack(mask)
    digest = packed_digest(words, first_row=first_row)
    return Comparison(words, digest, count(mask), count(before), count(mask ^ before))
