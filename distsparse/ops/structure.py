"""Structures: which weights live and die together (tiles), and the scope that holds a fixed count (groups).

Everything is chosen in *units*: a unit is one tile, and with the default tile (1, 1) one weight. A tile that
reaches over the edge of a matrix is a unit like any other, with fewer weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from distsparse.ops.flags import count

Pooling = Literal["sum", "norm"]


@dataclass(frozen=True)
class Structure:
    """Tiles and groups of a (rows, cols) weight matrix."""

    tile: tuple[int, int] = (1, 1)
    """rows and columns of a tile; -1 takes the whole dimension: (1, -1) is a neuron or an output channel"""
    group: Literal["layer", "row"] | int = "layer"
    """"row" keeps the same count in every row (constant fan-in); an int M keeps N of every M inputs"""

    def __post_init__(self) -> None:
        if self.group != "layer" and self.tile != (1, 1):
            raise ValueError(
                f"tile = {self.tile} with group = {self.group!r}: they exclude each other; "
                "tile must be (1, 1) or group 'layer'"
            )

    @property
    def unit_name(self) -> str:
        """What a unit is, in the plural."""
        return {(1, 1): "weights", (1, -1): "channels"}.get(self.tile, f"tiles of {self.tile}")

    def tile_of(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the tile's size in a matrix."""
        rows, cols = self.tile
        return (shape[0] if rows == -1 else rows, shape[1] if cols == -1 else cols)

    def units(self, mask: Tensor) -> Tensor:
        """Return the (unit rows, unit cols) flags of a mask that respects the tiles."""
        if self.tile == (1, 1):
            return mask
        rows, cols = self.tile_of((mask.shape[0], mask.shape[1]))
        return mask[::rows, ::cols]

    def grid(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return how many rows and columns of units a matrix has."""
        rows, cols = self.tile_of(shape)
        return -(-shape[0] // rows), -(-shape[1] // cols)

    def pool(self, score: Tensor, how: Pooling) -> Tensor:
        """Return one score for each unit: the sum of its weights' scores, or their Euclidean norm."""
        rows, cols = self.tile_of((score.shape[0], score.shape[1]))
        if (rows, cols) == (1, 1):
            return score
        values = score.square() if how == "norm" else score
        values = pad(values, (0, -score.shape[1] % cols, 0, -score.shape[0] % rows))
        tiles = (values.shape[0] // rows, rows, values.shape[1] // cols, cols)
        pooled = values.reshape(tiles).sum((1, 3))
        return pooled.sqrt() if how == "norm" else pooled

    def expand(self, units: Tensor, shape: tuple[int, int]) -> Tensor:
        """Return the (rows, cols) mask of unit flags."""
        rows, cols = self.tile_of(shape)
        if (rows, cols) == (1, 1):
            return units
        wide = units.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
        return wide[: shape[0], : shape[1]].contiguous()

    def num_groups(self, units: Tensor) -> int:
        """Return the number of groups of a unit matrix."""
        match self.group:
            case "layer":
                return 1
            case "row":
                return units.shape[0]
            case size:
                return units.shape[0] * math.ceil(units.shape[1] / size)

    def grouped(self, units: Tensor, fill: float | int | bool) -> Tensor:
        """Return unit values as (groups, members); a row's last group is filled up, never across rows."""
        match self.group:
            case "layer":
                return units.reshape(1, -1)
            case "row":
                return units
            case size:
                return pad(units, (0, -units.shape[1] % size), value=fill).reshape(-1, size)

    def ungrouped(self, groups: Tensor, units: Tensor) -> Tensor:
        """Undo :meth:`grouped` for a unit matrix of ``units``' shape."""
        if isinstance(self.group, int):
            # Not -1, which a shard without rows leaves open.
            wide = -(-units.shape[1] // self.group) * self.group
            return groups.reshape(units.shape[0], wide)[:, : units.shape[1]].contiguous()
        return groups.reshape(units.shape)

    def counts(self, units: Tensor) -> Tensor:
        """Return int64 (groups,): how many units of each group are set."""
        if self.group == "layer":
            return torch.tensor([count(units)], device=units.device)
        return self.grouped(units, False).sum(1)

    def group_counts(
        self, target: int, allowed: Tensor, *, summed: Callable[[Tensor], Tensor] = lambda numbers: numbers
    ) -> Tensor:
        """Return int64 (groups,): how many units each group holds.

        Args:
            target: wanted active units of the layer, at most the allowed ones.
            allowed: bool (unit rows, unit cols), the units that may be active.
            summed: adds up numbers of groups over all parts of a layer, where this is one of them.

        A layer holds the target exactly. All other groups hold the same N (rows: the fan-in), or fewer where
        fewer are allowed: the N ≥ 1 whose total is nearest to the target, of two the smaller.
        """
        if self.group == "layer":
            return torch.full((1,), target, device=allowed.device)
        room = self.counts(allowed)
        if not target:
            return torch.zeros_like(room)
        # The n-th entry counts the groups with room for n units, so its running sum is the total at N = n.
        # Not N = round(density · M): with a narrower last group that gives another N at every update.
        size = self.grouped(allowed, False).shape[1]
        with_room = summed(torch.bincount(room, minlength=size + 1)).flip(0).cumsum(0).flip(0)[1:]
        totals = with_room.cumsum(0).tolist()
        each = 1 + min(range(len(totals)), key=lambda n: abs(totals[n] - target))
        return room.clamp(max=each)

    def top_k(self, score: Tensor, counts: Tensor, candidates: Tensor) -> Tensor:
        """Return a bool unit mask of each group's best candidates; ties go to the lower column.

        Args:
            score: (unit rows, unit cols).
            counts: int64 (groups,), at most each group's candidates.
            candidates: bool, shaped like ``score``.

        Raises:
            FloatingPointError: a candidate's score is NaN.
        """
        if score.is_floating_point() and bool((torch.isnan(score) & candidates).any()):
            raise FloatingPointError("a score is NaN")
        floor = torch.finfo(score.dtype).min if score.is_floating_point() else torch.iinfo(score.dtype).min
        open_ = self.grouped(candidates, False)
        values = self.grouped(score, floor).masked_fill(~open_, floor)
        # Candidates first, even where a score equals the floor; stable sorts keep the order of ties.
        order = torch.sort(values, dim=1, descending=True, stable=True).indices
        closed_last = torch.sort(
            open_.gather(1, order).to(torch.uint8), dim=1, descending=True, stable=True
        ).indices
        order = order.gather(1, closed_last)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        return self.ungrouped((rank < counts[:, None]) & open_, score)
