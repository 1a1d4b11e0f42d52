"""Counts and places of flags, and order statistics: numpy's on a CPU, which are vectorized there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from distsparse.ops import kernels

_IN_NUMPY = (torch.bool, torch.float32, torch.float64, torch.int64)


def count(flags: Tensor) -> int:
    """Return how many flags are set."""
    if flags.device.type != "cpu":
        return int(torch.count_nonzero(flags))
    return int(np.count_nonzero(flags.numpy()))


def places(flags: Tensor) -> Tensor:
    """Return the ascending flat indices of the flags that are set, as int64."""
    if flags.device.type != "cpu":
        return flags.reshape(-1).nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(flags.numpy()))


def at(flat: Tensor, index: slice | Tensor) -> Tensor:
    """Return the entries of a flat tensor in a range, which is a view, or at int64 indices."""
    return flat[index] if isinstance(index, slice) else flat.index_select(0, index)


def kth_largest(values: Tensor, k: int) -> Tensor:
    """Return the ``k``-th largest of flat values without NaN, 1 ≤ k ≤ their number, as a 0-dim tensor."""
    place = len(values) - k
    if not _in_numpy(values):
        return torch.kthvalue(values, place + 1).values
    if kernels.usable(values) and kernels.ordered(values):
        found = kernels.kth_largest(values, k)
        if found is not None:
            return found
    return torch.from_numpy(np.partition(values.numpy(), place))[place]


def below(values: Tensor, bound: Tensor) -> Tensor:
    """Return the flags of the values less than a 0-dim bound."""
    return torch.from_numpy(_array(values) < _array(bound)) if _in_numpy(values) else values < bound


def above(values: Tensor, bound: Tensor) -> Tensor:
    """Return the flags of the values greater than a 0-dim bound."""
    return torch.from_numpy(_array(values) > _array(bound)) if _in_numpy(values) else values > bound


def _in_numpy(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in _IN_NUMPY


def _array(values: Tensor) -> Any:
    return values.detach().numpy()
