"""Sparse-training methods, one file each, and their registry."""

from distsparse.methods.dense import dense
from distsparse.methods.registry import method, methods, names
from distsparse.methods.rigl import rigl
from distsparse.methods.set import set_
from distsparse.methods.static import static

__all__ = ["dense", "method", "methods", "names", "rigl", "set_", "static"]
