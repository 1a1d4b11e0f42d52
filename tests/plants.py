"""Faults that a configuration plants in its own processes: ``model: {name: plants:faulty, fault: …}``.

A fault happens on one rank, and once: its marker is a file, there from then on.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from parts import Perceptron, equal, tiny, untimed
from torch import Tensor, nn

from distsparse.config import RunConfig
from distsparse.core import load_network
from distsparse.core.criteria import Criterion
from distsparse.core.moves import Context
from distsparse.dist import gradient_hook
from distsparse.ops.select import Scores
from distsparse.results import read_trial
from distsparse.train import checkpoint

Fault = Literal[
    "none",
    "forward",
    "all-reduce",
    "update",
    "checkpoint",
    "hang",
    "hanging checkpoint",
    "nan gradient",
    "full disk",
    "SIGINT",
    "SIGTERM",
]


def faulty(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    fault: Fault = "none",
    marker: str = "",
    at: int = 8,
    rank: int = 1,
    hidden: int = 16,
    pause_s: float = 0.0,
) -> nn.Module:
    """A network with a fault in the ``at``-th training step, or in the next update or checkpoint after it.

    Args:
        input_shape: of one sample.
        num_classes: outputs.
        fault: one of ``PLANTS``.
        marker: a file that is made when the fault happens; where it exists, it happened.
        at: counts from one, and anew in each process.
        rank: the one that it happens on; on one process, there.
        hidden: units.
        pause_s: sleeps this long in each training step.
    """
    model = Perceptron(math.prod(input_shape), hidden, num_classes, 0.0)
    steps = _Steps(model, pause_s)
    alone = not torch.distributed.is_initialized()
    if fault == "none" or not (alone or torch.distributed.get_rank() == rank):
        return model

    def due() -> bool:
        if steps.count < at or (marker and Path(marker).exists()):
            return False
        if marker:
            Path(marker).touch()
        return True

    PLANTS[fault](model, due)
    return model


class _Steps:
    """Counts a model's forward passes in training."""

    def __init__(self, model: nn.Module, pause_s: float) -> None:
        self.count = 0
        self._pause_s = pause_s
        model.register_forward_pre_hook(self._advance)

    def _advance(self, module: nn.Module, args: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self.count += 1
            time.sleep(self._pause_s)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _in_forward(model: nn.Module, due: Callable[[], bool]) -> None:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if due():
            die()

    model.register_forward_hook(hook)


def _in_all_reduce(model: nn.Module, due: Callable[[], bool]) -> None:
    """The gradients' reduction has begun, and the other ranks are in it."""
    original = gradient_hook.begin_sum

    def begin_sum(*arguments: Any) -> Any:
        begins = due()
        future = original(*arguments)
        if begins:
            die()
        return future

    gradient_hook.begin_sum = begin_sum


def _in_update(model: nn.Module, due: Callable[[], bool]) -> None:
    """Between the drop and the grow of a mask update."""
    original = Context.scores

    def scores(self: Context, by: Criterion, name: str, purpose: str) -> Scores:
        if purpose == "grow" and due():
            die()
        return original(self, by, name, purpose)

    Context.scores = scores  # type: ignore[method-assign]


def _in_checkpoint(model: nn.Module, due: Callable[[], bool]) -> None:
    """One file of a checkpoint is written, and half of the next."""
    original = checkpoint.save_file

    def save_file(tensors: dict[str, Tensor], file: Path) -> None:
        original(tensors, file)
        if file.name == checkpoint.STATE and due():
            with file.open("r+b") as half:
                half.truncate(file.stat().st_size // 2)
            die()

    checkpoint.save_file = save_file


def _hang(model: nn.Module, due: Callable[[], bool]) -> None:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if due():
            time.sleep(600)

    model.register_forward_hook(hook)


def _nan_gradient(model: nn.Module, due: Callable[[], bool]) -> None:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if due():
            output.register_hook(lambda gradient: gradient * math.nan)

    model.register_forward_hook(hook)


def _hanging_checkpoint(model: nn.Module, due: Callable[[], bool]) -> None:
    original = checkpoint.save_file

    def save_file(tensors: dict[str, Tensor], file: Path) -> None:
        if due():
            time.sleep(600)
        original(tensors, file)

    checkpoint.save_file = save_file


def _full_disk(model: nn.Module, due: Callable[[], bool]) -> None:
    """Another program fills what is left of the disk at ``FILLED``."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if due():
            with suppress(OSError), Path(os.environ["FILLED"], "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))

    model.register_forward_hook(hook)


def _signal(number: int) -> Callable[[nn.Module, Callable[[], bool]], None]:
    def plant(model: nn.Module, due: Callable[[], bool]) -> None:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if due():
                os.kill(os.getpid(), number)

        model.register_forward_hook(hook)

    return plant


PLANTS: dict[str, Callable[[nn.Module, Callable[[], bool]], None]] = {
    "forward": _in_forward,
    "all-reduce": _in_all_reduce,
    "update": _in_update,
    "checkpoint": _in_checkpoint,
    "hang": _hang,
    "nan gradient": _nan_gradient,
    "hanging checkpoint": _hanging_checkpoint,
    "full disk": _full_disk,
    "SIGINT": _signal(signal.SIGINT),
    "SIGTERM": _signal(signal.SIGTERM),
}


def planted(fault: Fault, marker: Path, **values: Any) -> RunConfig:
    """24 steps, updates every 3 and checkpoints every 5; keywords of the model, and values by dotted name."""
    keywords = {name: values.pop(name) for name in list(values) if "." not in name}
    model = {"name": "plants:faulty", "fault": fault, "marker": str(marker), **keywords}
    return tiny({"model": model, "optimizer.momentum": 0.9, "checkpoint.every_steps": 5} | values)


def outcome(root: Path, config: RunConfig) -> dict[str, Any]:
    """All that a completed run left but for times: weights, masks, and its rows as text."""
    (row,) = read_trial(root, study=config.study, trial=config.key) or [{}]
    assert row.get("status") == "completed", row
    weights, masks = load_network(Path(row["checkpoint"]))
    tables = {}
    for table in ("steps", "rewires", "layers"):
        rows = untimed(read_trial(root, study=config.study, trial=config.key, table=table) or [])
        tables[table] = str([{name: v for name, v in line.items() if name != "trial"} for line in rows])
    return {"weights": weights, "masks": masks, **tables}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two outcomes are the same bit for bit."""
    tables = ("steps", "rewires", "layers")
    return (
        equal(first["weights"], second["weights"])
        and equal(first["masks"], second["masks"])
        and all(first[table] == second[table] for table in tables)
    )
