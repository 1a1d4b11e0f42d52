"""Gradients between processes: only active entries travel, but for the steps whose dense gradient is read.

A communication hook of DistributedDataParallel. Weights are dense tensors with zeros in place, so autograd's
gradient is dense; the entries of inactive weights would be reduced only to be thrown away.
"""

# No postponed annotations: DDP compares the hook's own with its types.

from collections.abc import Mapping
from typing import Literal, Protocol
from weakref import ref

import torch
from torch import Tensor
from torch import distributed as torch_dist
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from distsparse.dist.comm import begin_sum
from distsparse.ops import kernels
from distsparse.ops.flags import places

Compression = Literal["none", "bf16", "fp16"]

_MOST_INT32 = torch.iinfo(torch.int32).max
_WIRE = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class ActiveEntries(Protocol):
    """What the hook asks of a topology; equal on all ranks at every step."""

    @property
    def version(self) -> int:
        """A number that changes with the topology."""

    @property
    def wants_dense_gradient(self) -> bool:
        """Whether the step under way reads the gradient of inactive weights."""

    def active_entries(self, parameter: Tensor) -> Tensor | None:
        """Return bool of the parameter's shape, or None where every entry is wanted."""

    def inactive_zeroed(self, parameter: Tensor, gradient: Tensor) -> None:
        """Take note that a gradient is zero now wherever its parameter is inactive."""


class GradientHook:
    """Reduces a bucket's active entries to their mean over ranks, and sets the others to zero.

    The mean is that of DDP's own reduction: each rank divides by the world size, then all sum. With two ranks
    the weights are those of a plain all-reduce bit for bit; with more, the order of a sum may differ in the
    last bits, as it does between any two sizes of an all-reduce.
    """

    def __init__(
        self,
        active: ActiveEntries | None,
        *,
        compression: Compression = "none",
        group: torch_dist.ProcessGroup | None = None,
    ) -> None:
        self.sent_bytes = 0.0
        """that this process has sent, counted as a ring's: 2 (W - 1) / W of each reduced tensor"""
        self.dense_bytes = 0.0
        """that a plain all-reduce of the same gradients would have sent"""
        # Weakly: DDP holds its hook where no garbage collector looks, and the topology's owner holds DDP.
        self._active = None if active is None else ref(active)
        self._wire = _WIRE[compression]
        self._group = group
        self._indices: dict[tuple[int, ...], Tensor | None] = {}
        self._version = -1

    def reduce(self, bucket: GradBucket) -> Future[Tensor]:
        """Begin to reduce a bucket; all ranks reduce the same buckets in the same order."""
        buffer = bucket.buffer()
        active = self._topology()
        index = None if active is None else self._index(bucket, active)
        payload = buffer if index is None else buffer.index_select(0, index)
        if self._wire is not None:
            payload = payload.to(self._wire)
        world_size = torch_dist.get_world_size(self._group)
        payload.div_(world_size)
        share = 2 * (world_size - 1) / world_size
        self.sent_bytes += share * payload.numel() * payload.element_size()
        self.dense_bytes += share * buffer.numel() * buffer.element_size()

        def finish(reduced: Tensor) -> Tensor:
            if index is None:
                return buffer if reduced.dtype == buffer.dtype else buffer.copy_(reduced)
            _spread(reduced.to(buffer.dtype), index, buffer)
            assert active is not None
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
                active.inactive_zeroed(parameter, gradient)
            return buffer

        return begin_sum(payload, finish, self._group)

    def _topology(self) -> ActiveEntries | None:
        if self._active is None:
            return None
        active = self._active()
        if active is None:
            raise RuntimeError("the sparsifier given to reduce_active is gone; keep it as long as the model")
        return active

    def _index(self, bucket: GradBucket, active: ActiveEntries) -> Tensor | None:
        """Return the positions of the entries that travel, or None if all do."""
        if active.wants_dense_gradient:
            return None
        if self._version != active.version:
            self._version = active.version
            self._indices.clear()
        parameters = bucket.parameters()
        # DDP regroups its buckets after the first step, so their number does not identify them.
        key = tuple(id(parameter) for parameter in parameters)
        if key not in self._indices:
            self._indices[key] = _positions(parameters, active)
        return self._indices[key]

    def state_dict(self) -> dict[str, float]:
        """Return the counters."""
        return {"sent_bytes": self.sent_bytes, "dense_bytes": self.dense_bytes}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on counting from :meth:`state_dict`."""
        self.sent_bytes, self.dense_bytes = state["sent_bytes"], state["dense_bytes"]


def _spread(values: Tensor, index: Tensor, into: Tensor) -> None:
    """Write values at ascending indices of a flat tensor, and zeros everywhere else."""
    if kernels.usable(into) and kernels.ordered(into):
        kernels.spread(values, index, into)
    else:
        into.zero_().index_copy_(0, index.long(), values)


def _positions(parameters: list[Tensor], active: ActiveEntries) -> Tensor | None:
    """Return positions in the parameters' concatenation, or None for all of them; int32 where these do."""
    masks = [active.active_entries(parameter) for parameter in parameters]
    if all(mask is None for mask in masks):
        return None
    parts, start = [], 0
    for parameter, mask in zip(parameters, masks, strict=True):
        own = (
            torch.arange(parameter.numel(), device=parameter.device)
            if mask is None
            else places(mask.reshape(-1))
        )
        parts.append(own + start)
        start += parameter.numel()
    positions = torch.cat(parts)
    return positions.int() if start <= _MOST_INT32 else positions


def reduce_active(
    model: DistributedDataParallel, active: ActiveEntries | None, *, compression: Compression = "none"
) -> GradientHook:
    """Let only active gradient entries travel between the processes of a DDP model; return the byte counters.

    Call it on every rank, before the first backward pass, and once.

    Args:
        model: wrapped by DistributedDataParallel, with no hook yet.
        active: a :class:`~distsparse.core.Sparsifier` of the model, for the caller to keep as long as the
            model trains; None lets all entries travel, counted.
        compression: number format on the wire; ``none`` sends the gradients' own.

    Raises:
        ValueError: the model is not wrapped.
    """
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(f"model {type(model).__name__}: must be wrapped by DistributedDataParallel")
    hook = GradientHook(active, compression=compression, group=model.process_group)
    model.register_comm_hook(hook, GradientHook.reduce)
    return hook
