"""What is active."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Topology:
    """Masks and the exact number of active units that each layer should have.

    A unit is one weight, or one tile where the method's structure has tiles. A layer's *vacancies* are its
    target less its active units: a drop opens them, a grow fills them; between updates there are none.
    """

    masks: Mapping[str, Tensor]
    """bool (rows, cols) for each layer: True is active."""
    targets: Mapping[str, int]
    """requested active units of each layer."""
    allowed: Mapping[str, Tensor] = field(default_factory=dict)
    """bool (rows, 1): rows that may be active, of layers that have ablated rows; all rows elsewhere."""
    requested: Mapping[str, int] = field(default_factory=dict)
    """active units that the last allocation gave to a layer, before its groups rounded them."""
    counted: Mapping[str, tuple[Tensor, int]] = field(default_factory=dict)
    """masks and their active units, where these are known; of a sharded layer those of all ranks."""

    def nnz(self, name: str) -> int:
        """Return the number of active weights of a layer."""
        return int(self.masks[name].sum())

    @property
    def num_weights(self) -> int:
        """Number of sparsified weights, active or not."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def sparsity(self) -> float:
        """Inactive fraction of the sparsified weights."""
        return 1 - sum(self.nnz(name) for name in self.masks) / self.num_weights

    @property
    def density(self) -> dict[str, float]:
        """Active fraction of each layer."""
        return {name: self.nnz(name) / mask.numel() for name, mask in self.masks.items()}

    def of(self, name: str) -> Topology:
        """Return what concerns one layer."""

        def only(values: Mapping[str, T]) -> dict[str, T]:
            return {name: values[name]} if name in values else {}

        return Topology(
            only(self.masks),
            only(self.targets),
            only(self.allowed),
            only(self.requested),
            only(self.counted),
        )

    def with_masks(
        self, masks: Mapping[str, Tensor], *, num_active: Mapping[str, int] | None = None
    ) -> Topology:
        """Return the same targets with other masks, and their active units where these are known."""
        counted = {name: (masks[name], num) for name, num in (num_active or {}).items()}
        return Topology(masks, self.targets, self.allowed, self.requested, counted)

    def num_active(self, name: str) -> int | None:
        """Return a layer's active units where they are known."""
        mask, num = self.counted.get(name, (None, 0))
        return num if mask is self.masks[name] else None

    def with_targets(self, targets: Mapping[str, int]) -> Topology:
        """Return the same masks with other targets."""
        return replace(self, targets=targets)
