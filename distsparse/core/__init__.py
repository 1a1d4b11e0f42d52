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
from distsparse.core.moves import (
    Context,
    Move,
    ablate,
    adopt,
    drop,
    grow,
    prune,
    redistribute,
    refill,
    shuffle,
)
from distsparse.core.signals import Signals
from distsparse.core.sparsifier import Sparsifier
from distsparse.core.ticket import Start, Ticket, find_checkpoint, load_network
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
    "Start",
    "Ticket",
    "Topology",
    "ablate",
    "adopt",
    "allocator",
    "drop",
    "find_checkpoint",
    "find_weights",
    "gradient",
    "gradient_flow",
    "grow",
    "load_network",
    "magnitude",
    "magnitude_and_gradient",
    "momentum",
    "prune",
    "random",
    "redistribute",
    "refill",
    "saliency",
    "shuffle",
    "synaptic_flow",
]
