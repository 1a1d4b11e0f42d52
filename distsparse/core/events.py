"""What an update did, and the totals over a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerChange:
    """What an update did to one layer. A weight dropped and grown again in one update did not change."""

    name: str
    num_dropped: int
    num_grown: int
    nnz: int
    num_weights: int
    fraction: float
    """num_dropped relative to the active weights before."""
    digest: str


@dataclass(frozen=True)
class Rewired:
    """A mask update that happened."""

    step: int
    layers: tuple[LayerChange, ...]
    skip_optimizer_step: bool
    """the method wants no optimizer step in this iteration."""

    @property
    def num_dropped(self) -> int:
        """Connections removed over all layers."""
        return sum(layer.num_dropped for layer in self.layers)

    @property
    def num_grown(self) -> int:
        """Connections added over all layers."""
        return sum(layer.num_grown for layer in self.layers)


@dataclass
class Statistics:
    """Totals over the run so far."""

    num_updates: int = 0
    num_dropped: int = 0
    num_grown: int = 0
    num_deferred: int = 0
    """updates put off by a step because a gradient was not finite."""

    def count(self, event: Rewired) -> None:
        """Add an update."""
        self.num_updates += 1
        self.num_dropped += event.num_dropped
        self.num_grown += event.num_grown
