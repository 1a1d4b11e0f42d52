"""Train neural networks that are sparse from the first step, on one machine or a Ray cluster."""

from distsparse import methods, ops
from distsparse.core import Rewired, Sparsifier, Topology
from distsparse.version import __version__

__all__ = ["Rewired", "Sparsifier", "Topology", "__version__", "methods", "ops"]
