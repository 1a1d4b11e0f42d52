"""The few collectives that sparse training needs, and their identity on one process."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch import distributed as torch_dist
from torch.futures import Future

if torch_dist.is_available():
    # DDP imports it, too; if a group is there by then, default arguments of its functions hold it for good.
    import torch.distributed.nn.functional

_MOMENT_S = 0.1
_MOST_EXCHANGED = 1 << 18
"""bytes; on a link of 1 Gbit/s they take two milliseconds, a wait for threads about one"""


class Comm(Protocol):
    """What ranks do together. Every rank must make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This process, 0 ≤ rank < world_size."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the elementwise sum over ranks; the argument is left as it is."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor, in rank order; shapes must be equal."""


class LocalComm:
    """One process: the sum is the identity."""

    rank = 0
    world_size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor itself."""
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensor alone."""
        return [tensor]


class ProcessGroupComm:
    """The ranks of a ``torch.distributed`` process group (gloo or NCCL)."""

    def __init__(self, group: torch_dist.ProcessGroup | None = None) -> None:
        self._group = group

    @property
    def rank(self) -> int:
        """This process within the group."""
        return torch_dist.get_rank(self._group)

    @property
    def world_size(self) -> int:
        """Number of processes of the group."""
        return torch_dist.get_world_size(self._group)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the elementwise sum over ranks."""
        result = tensor.clone()
        torch_dist.all_reduce(result, group=self._group)
        return result

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor, in rank order."""
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        torch_dist.all_gather(parts, tensor.contiguous(), group=self._group)
        return parts


def current(group: torch_dist.ProcessGroup | None = None) -> Comm:
    """Return a process group's collectives, the default one's unless given; the identity where none is."""
    if torch_dist.is_available() and torch_dist.is_initialized():
        return ProcessGroupComm(group)
    return LocalComm()


def leave() -> None:
    """Destroy the default process group, and end its threads.

    A thread of gloo's lets go of a tensor after the caller has gone on; if the interpreter has ended by then,
    the whole process is aborted. ``destroy_process_group`` alone leaves the threads to whoever still holds the
    group, as a DDP model does until it is collected. So no variable may hold such a model any more. Waits for
    collectives that are under way: not for a rank that failed among them.
    """
    gc.collect()
    torch_dist.destroy_process_group()
    if "torch.distributed.tensor" in sys.modules:
        # DTensor's caches keep the group of a sharded model, whose threads stay; they let go meanwhile.
        time.sleep(_MOMENT_S)


def begin_sum(
    tensor: Tensor, finish: Callable[[Tensor], Tensor], group: torch_dist.ProcessGroup | None = None
) -> Future[Tensor]:
    """Begin to sum a flat tensor over a group's ranks, in place; all ranks get the same bits.

    The future is of what ``finish`` makes of the sum, on another thread.

    Two processes on CPUs send each other all they have, as many bytes as in a ring: one exchange instead of
    the rounds of gloo's ring, for each of which threads wait to be woken. The order of two terms is no matter.
    Only of a small tensor: in gloo's exchange a process sends before it says that it is ready to receive, so
    that a large one passes in one direction at a time.
    """
    exchanged = tensor.device.type == "cpu" and tensor.nbytes <= _MOST_EXCHANGED
    if not exchanged or torch_dist.get_world_size(group) != 2:
        reduced: Future[list[Tensor]] = torch_dist.all_reduce(tensor, group=group, async_op=True).get_future()
        return reduced.then(lambda future: finish(future.value()[0]))
    other = torch.empty_like(tensor)
    to_each = [0, len(tensor)] if torch_dist.get_rank(group) == 0 else [len(tensor), 0]
    exchange = torch_dist.all_to_all_single(other, tensor, to_each, to_each, group=group, async_op=True)
    received: Future[list[Tensor]] = exchange.get_future()

    def add(future: Future[list[Tensor]]) -> Tensor:
        future.value()  # raises what ended the exchange; a callback is called all the same
        return finish(tensor.add_(other))

    return received.then(add)


def any_rank(comm: Comm, flag: Tensor) -> bool:
    """Tell whether a 0-dim bool tensor is true on any rank."""
    return bool(comm.sum(flag.to(torch.int64).reshape(1)) > 0)
