"""Which part of a tensor this process holds, where FSDP2 (``fully_shard``) has sharded it.

A sharded tensor is a ``DTensor``: rank r of W holds the r-th of W ranges of ⌈n / W⌉ entries of one dimension,
the last ones fewer or none.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as torch_dist


def is_sharded(tensor: Any) -> bool:
    """Tell whether a tensor is distributed over processes."""
    # Nobody has one who has not imported its module, which takes most of a second.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, which shares its memory; any other as it is."""
    if not is_sharded(tensor):
        return tensor
    part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def group_of(tensor: Any) -> torch_dist.ProcessGroup:
    """Return the processes that a tensor is sharded over.

    Raises:
        ValueError: it is replicated, or distributed over a mesh of several dimensions.
    """
    placements = tensor.placements
    if len(placements) != 1 or not placements[0].is_shard():
        raise ValueError(f"placements {placements}: must be one Shard, over a mesh of one dimension")
    group: torch_dist.ProcessGroup = tensor.device_mesh.get_group()
    return group


def range_of(tensor: Any) -> tuple[int, slice]:
    """Return the dimension that a tensor is sharded along, and the range that this process holds."""
    dim = tensor.placements[0].dim
    size, each = tensor.shape[dim], -(-tensor.shape[dim] // tensor.device_mesh.size())
    start = min(tensor.device_mesh.get_local_rank() * each, size)
    part = slice(start, min(start + each, size))
    assert local(tensor.detach()).shape[dim] == part.stop - part.start, "an unknown layout of shards"
    return dim, part


def first_row(parameter: Tensor) -> int:
    """Return the place of this process's first row (of the sharded dimension) in the whole."""
    return range_of(parameter)[1].start if is_sharded(parameter) else 0


def shard_of(whole: Tensor, like: Any) -> Tensor:
    """Return a whole tensor sharded as another one of its shape; this process copies its own part."""
    if not is_sharded(like) or is_sharded(whole):
        return whole
    dim, part = range_of(like)
    own = whole.narrow(dim, part.start, part.stop - part.start)
    return _distributed(own.to(like.device, copy=True), like, like.placements[0], tuple(like.shape))


def row_shard(rows: Tensor, parameter: Any) -> Tensor:
    """Return this process's rows of a matrix as the sharded whole; a parameter that is not gives them back.

    Args:
        rows: (rows held here, any number of columns).
        parameter: whose rows they belong to, sharded along them.
    """
    if not is_sharded(parameter):
        return rows
    from torch.distributed.tensor import Shard

    num_rows = parameter.shape[parameter.placements[0].dim]
    return _distributed(rows, parameter, Shard(0), (num_rows, *rows.shape[1:]))


def _distributed(part: Tensor, like: Any, placement: Any, shape: tuple[int, ...]) -> Tensor:
    from torch.distributed.tensor import DTensor

    part = part.contiguous()
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        part, like.device_mesh, [placement], run_check=False, shape=torch.Size(shape), stride=stride
    )


def own_rows(matrix: Tensor, parameter: Tensor) -> Tensor:
    """Return the rows of a matrix, whole or sharded, that this process holds of a parameter."""
    if is_sharded(matrix) or not is_sharded(parameter):
        return local(matrix)
    return matrix[range_of(parameter)[1]]


def placed(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict whose whole tensors are sharded as those of the same names."""
    return {name: shard_of(value, like[name]) if name in like else value for name, value in state.items()}


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor; all ranks must call it. Any other as it is."""
    if not is_sharded(tensor):
        return tensor
    gathered: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return gathered
