"""Topologies, criteria, moves, methods, and the sparsifier that applies them to a model."""

from distsparse.core.allocators import AllocationName, Allocator, allocator
from distsparse.core.criteria import (
    Criterion,
    gradient,
    gradient_flow,
    magnitude,
    magnitude_and_gradient,
    momentum,
    random,
    saliency,
    synaptic_flow,
)
from distsparse.core.events import LayerChange, Rewired
from distsparse.core.growth import GrowInit
from distsparse.core.method import Method
from distsparse.core.moves import Context, Move, ablate, drop, grow, prune, redistribute, refill
from distsparse.core.signals import Signals
from distsparse.core.sparsifier import Sparsifier
from distsparse.core.topology import Topology
from distsparse.core.weights import SparseWeight, find_weights

__all__ = [
    "AllocationName",
    "Allocator",
    "Context",
    "Criterion",
    "GrowInit",
    "LayerChange",
    "Method",
    "Move",
    "Rewired",
    "Signals",
    "SparseWeight",
    "Sparsifier",
    "Topology",
    "ablate",
    "allocator",
    "drop",
    "find_weights",
    "gradient",
    "gradient_flow",
    "grow",
    "magnitude",
    "magnitude_and_gradient",
    "momentum",
    "prune",
    "random",
    "redistribute",
    "refill",
    "saliency",
    "synaptic_flow",
]
