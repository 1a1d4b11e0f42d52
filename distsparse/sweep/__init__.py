"""Sweeps over a space of configurations with Ray Tune."""

from distsparse.sweep.run import sweep
from distsparse.sweep.space import Space, parse_space

__all__ = ["Space", "parse_space", "sweep"]
