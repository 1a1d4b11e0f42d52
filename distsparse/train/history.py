"""What a run did, row by row: it travels in the checkpoints, and becomes the results' tables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """Rows of the ``steps`` and ``rewires`` tables, the run's summary so far, and its clocks."""

    machine: Row = field(default_factory=dict)
    """where rank 0 runs"""
    steps: list[Row] = field(default_factory=list)
    rewires: list[Row] = field(default_factory=list)
    summary: Row = field(default_factory=dict)
    started_at: float = field(default_factory=time.time)
    wall_s: float = 0.0
    """since the first step, over all processes that the run was resumed in"""
    train_s: float = 0.0
    """of it in training steps: without evaluation and checkpoints"""
    row_train_s: float = 0.0
    """``train_s`` at the last row of ``steps``"""
    _since: float | None = None

    def resume_clock(self) -> None:
        """Begin to count the time of training steps."""
        self._since = time.perf_counter()

    def pause_clock(self) -> None:
        """Count the time since the clock was resumed, as training."""
        if self._since is not None:
            seconds = time.perf_counter() - self._since
            self.train_s += seconds
            self.wall_s += seconds
            self._since = None

    @contextmanager
    def beside_training(self) -> Iterator[None]:
        """Count a block as wall time only."""
        self.pause_clock()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.wall_s += time.perf_counter() - start
            self.resume_clock()

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
        return {name: value for name, value in vars(self).items() if name != "_since"}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take over what a checkpoint's run had done."""
        for name, value in values.items():
            setattr(self, name, value)
