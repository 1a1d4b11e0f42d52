"""Collectives, and the check that ranks agree; nothing else in the package talks to other processes."""

from distsparse.dist.agree import TopologyMismatch, verify
from distsparse.dist.comm import Comm, LocalComm, ProcessGroupComm, any_rank, current

__all__ = ["Comm", "LocalComm", "ProcessGroupComm", "TopologyMismatch", "any_rank", "current", "verify"]
