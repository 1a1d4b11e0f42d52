"""Collectives, and the check that ranks agree; nothing else in the package talks to other processes."""

from distsparse.dist.agree import TopologyMismatch, verify
from distsparse.dist.comm import Comm, LocalComm, ProcessGroupComm, any_rank, current, leave
from distsparse.dist.gradient_hook import ActiveEntries, Compression, GradientHook, reduce_active
from distsparse.dist.whole import Whole

__all__ = [
    "ActiveEntries",
    "Comm",
    "Compression",
    "GradientHook",
    "LocalComm",
    "ProcessGroupComm",
    "TopologyMismatch",
    "Whole",
    "any_rank",
    "current",
    "leave",
    "reduce_active",
    "verify",
]
