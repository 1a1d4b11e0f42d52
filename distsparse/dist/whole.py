"""What is true of a layer as a whole, where this process may hold some of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from distsparse.dist import select as over_ranks
from distsparse.dist.comm import Comm, LocalComm, any_rank
from distsparse.ops import flags, select
from distsparse.ops.select import Scored, Scores

T = TypeVar("T")


class Whole:
    """Counts and choices over the rows of all ranks, in the order of ranks.

    Without other ranks, as on one process and under DDP, each is that of the tensor itself. Else all ranks
    must make the same calls in the same order, each for its own rows of the same layer; a rank may hold none.
    """

    def __init__(self, comm: Comm | None = None, *, device: torch.device | None = None) -> None:
        self._comm = comm or LocalComm()
        self._device = device

    @property
    def is_sharded(self) -> bool:
        """Whether there are rows on other ranks."""
        return self._comm.world_size > 1

    def sum(self, numbers: Tensor) -> Tensor:
        """Return the elementwise sum over ranks."""
        return self._comm.sum(numbers) if self.is_sharded else numbers

    def count(self, of: Tensor) -> int:
        """Return how many flags are set."""
        found = flags.count(of)
        return int(self.sum(torch.tensor([found], device=of.device))) if self.is_sharded else found

    def total(self, of: Tensor) -> int:
        """Return the sum of whole numbers."""
        return int(self.sum(of.sum().reshape(1)))

    def any(self, of: Tensor) -> bool:
        """Tell whether any flag is set."""
        return any_rank(self._comm, of.any()) if self.is_sharded else bool(of.any())

    def mean(self, of: Tensor) -> float:
        """Return the mean in double precision, 0 where there is nothing."""
        sum_and_num = torch.stack([of.sum(dtype=torch.float64), of.new_tensor(of.numel(), dtype=torch.float64)])
        total, num = self.sum(sum_and_num).tolist()
        return float(total / num) if num else 0.0

    def rows(self, own: Tensor) -> Tensor:
        """Return the rows of all ranks."""
        return torch.cat(self._all_rows(own))

    def ranks(self, values: Tensor) -> Tensor:
        """Return int64 ranks of values among all, from 0 for the least; equal values have one.

        The values travel: this is for the scores of whole rows, of which a layer has few.
        """
        parts = [part.reshape(-1) for part in self._all_rows(values)]
        found: Tensor = torch.unique(torch.cat(parts), return_inverse=True)[1]
        first = sum(len(part) for part in parts[: self._comm.rank])
        return found[first : first + values.numel()].reshape(values.shape)

    def top_k_mask(
        self, score: Tensor | Scores, k: int, candidates: Tensor, *, num_candidates: int | None = None
    ) -> Tensor:
        """Return which candidates are among the ``k`` best; see :func:`distsparse.ops.select.top_k_mask`."""
        if self.is_sharded:
            return over_ranks.top_k_mask(score, k, candidates, self._comm)
        return select.top_k_mask(score, k, candidates, num_candidates=num_candidates)

    def filled_mask(
        self, score: Tensor | Scores, k: int, active: Tensor, *, num_active: int | None = None
    ) -> Tensor:
        """Return ``active`` with the ``k`` best others; see :func:`distsparse.ops.select.filled_mask`."""
        if self.is_sharded:
            return self.top_k_mask(score, k, ~active).logical_or_(active)
        return select.filled_mask(score, k, active, num_active=num_active)

    def top_k_counts(
        self, parts: Sequence[Callable[[], Scored]], k: int, *, nums: Sequence[int] | None = None
    ) -> list[int]:
        """Return how many of the best lie in each layer; see :func:`distsparse.ops.select.top_k_counts`."""
        if self.is_sharded:
            return over_ranks.top_k_counts(parts, k, self._comm)
        return select.top_k_counts(parts, k, nums=nums)

    def together(self, of_own_rows: Callable[[], T]) -> T:
        """Return what a function makes of this rank's rows.

        Raises:
            FloatingPointError: it did so on any rank; raised on all.
        """
        if not self.is_sharded:
            return of_own_rows()
        problem = None
        try:
            found = of_own_rows()
        except FloatingPointError as error:
            problem = error
        if any_rank(self._comm, torch.tensor(problem is not None, device=self._device)):
            raise problem or FloatingPointError("on another rank")
        return found

    def _all_rows(self, own: Tensor) -> list[Tensor]:
        if not self.is_sharded:
            return [own]
        sizes = [int(size) for size in self._comm.gather(torch.tensor([len(own)], device=own.device))]
        padded = own.new_zeros((max(sizes), *own.shape[1:]))
        padded[: len(own)] = own
        return [part[:size] for part, size in zip(self._comm.gather(padded), sizes, strict=True)]
