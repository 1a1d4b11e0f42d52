"""Topologies, criteria, moves, methods, and the sparsifier that applies them to a model."""

from distsparse.core.allocators import AllocationName, Allocator, allocator
from distsparse.core.criteria import Criterion, gradient, magnitude, random
from distsparse.core.events import LayerChange, Rewired
from distsparse.core.method import Method
from distsparse.core.moves import Context, Move, drop, grow, prune
from distsparse.core.signals import Signals
from distsparse.core.sparsifier import Sparsifier
from distsparse.core.topology import Topology
from distsparse.core.weights import SparseWeight, find_weights

__all__ = [
    "AllocationName",
    "Allocator",
    "Context",
    "Criterion",
    "LayerChange",
    "Method",
    "Move",
    "Rewired",
    "Signals",
    "SparseWeight",
    "Sparsifier",
    "Topology",
    "allocator",
    "drop",
    "find_weights",
    "gradient",
    "grow",
    "magnitude",
    "prune",
    "random",
]
