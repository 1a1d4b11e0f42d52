"""What a run did, row by row: it travels in the checkpoints, and becomes the results' tables."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distsparse.core import Rewired
from distsparse.dist import Comm

Row = dict[str, Any]


class LossWindow:
    """Mean training loss since it was last taken, on the device until then."""

    def __init__(self, comm: Comm, device: torch.device) -> None:
        self._comm = comm
        self._sum = torch.zeros(1, dtype=torch.float64, device=device)
        self.num_steps = 0

    def add(self, loss: Tensor) -> None:
        """Add a micro-batch's share of a step's loss."""
        self._sum += loss

    def take(self) -> float:
        """Return the mean over steps and ranks, and start anew. All ranks must call it."""
        mean = float(self._comm.sum(self._sum)) / self._comm.world_size / self.num_steps
        self._sum.zero_()
        self.num_steps = 0
        return mean

    def synchronize(self) -> None:
        """Give every rank the mean over ranks, which a checkpoint holds. All ranks must call it."""
        self._sum = self._comm.sum(self._sum) / self._comm.world_size

    def state_dict(self) -> dict[str, Any]:
        """Return what was added so far."""
        return {"sum": self._sum.clone(), "num_steps": self.num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._sum.copy_(state["sum"])
        self.num_steps = int(state["num_steps"])


@dataclass
class History:
    """Rows of the ``steps`` and ``rewires`` tables, and the run's summary so far."""

    steps: list[Row] = field(default_factory=list)
    rewires: list[Row] = field(default_factory=list)
    summary: Row = field(default_factory=dict)
    elapsed_s: float = 0.0
    """training time of earlier processes of this run"""
    started_at: float = field(default_factory=time.time)
    _resumed_at: float = field(default_factory=time.perf_counter)

    def total_s(self) -> float:
        """Return the training time in seconds, over all processes that the run was resumed in."""
        return self.elapsed_s + time.perf_counter() - self._resumed_at

    def add_rewired(self, event: Rewired) -> None:
        """Add one row for each layer of a mask update; step 0 is the initialization."""
        for layer in event.layers:
            self.rewires.append(
                {
                    "step": event.step,
                    "layer": layer.name,
                    "fraction": layer.fraction,
                    "num_dropped": layer.num_dropped,
                    "num_grown": layer.num_grown,
                    "nnz": layer.nnz,
                    "num_weights": layer.num_weights,
                    "digest": layer.digest,
                }
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {
            "steps": self.steps,
            "rewires": self.rewires,
            "summary": self.summary,
            "elapsed_s": self.total_s(),
            "started_at": self.started_at,
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take over what a checkpoint's run had done."""
        self.steps = list(values["steps"])
        self.rewires = list(values["rewires"])
        self.summary = dict(values["summary"])
        self.elapsed_s = float(values["elapsed_s"])
        self.started_at = float(values["started_at"])
        self._resumed_at = time.perf_counter()
