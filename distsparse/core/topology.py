"""What is active."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Topology:
    """Masks and the exact number of active weights that each layer should have.

    A layer's *vacancies* are ``targets[name] - nnz(name)``: a drop opens them, a grow fills them, and between
    two updates there are none.
    """

    masks: Mapping[str, Tensor]
    """bool (rows, cols) for each layer: True is active."""
    targets: Mapping[str, int]
    """requested active count of each layer."""

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

    def with_masks(self, masks: Mapping[str, Tensor]) -> Topology:
        """Return the same targets with other masks."""
        return Topology(masks=masks, targets=self.targets)
