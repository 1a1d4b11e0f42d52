"""The training loop, its checkpoints, and the protocol through which it reports."""

from distsparse.train.history import History
from distsparse.train.loop import train
from distsparse.train.reporter import LocalReporter, Reporter
from distsparse.train.setup import check, prepare

__all__ = ["History", "LocalReporter", "Reporter", "check", "prepare", "train"]
