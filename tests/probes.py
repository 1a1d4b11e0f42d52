"""Data and models that note in a folder what happened in which process; a configuration names them."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from parts import Perceptron, blobs
from torch import Tensor, nn

from distsparse.data import Dataset


def note(folder: str, kind: str, **values: Any) -> None:
    """Add a note; any number of processes may at once."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    values |= {"pid": os.getpid(), "time": time.time()}
    temporary = Path(folder) / f".{uuid.uuid4().hex}"
    temporary.write_text(json.dumps(values))
    temporary.rename(Path(folder) / f"{kind}-{temporary.name[1:]}")


def notes(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in folder.glob(f"{kind}-*")]


def data(*, folder: str) -> Dataset:
    """Blobs, and a note for each time that they are loaded."""
    note(folder, "load")
    return blobs()


def model(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    folder: str,
    width: int = 8,
    pause_s: float = 0.0,
    kill_at: int = 0,
) -> nn.Module:
    """A network that notes each training step, and kills its process once, in its ``kill_at``-th step.

    Trials that are of one ``width`` share the note of that death.
    """
    network = Perceptron(input_shape[0], width, num_classes, 0.0)
    calls = 0

    def step(module: nn.Module, args: tuple[Tensor]) -> None:
        nonlocal calls
        # Two samples are the rehearsal before a run.
        if not (module.training and torch.is_grad_enabled()) or len(args[0]) == 2:
            return
        calls += 1
        time.sleep(pause_s)
        note(folder, "step", width=width, threads=torch.get_num_threads())
        if kill_at and calls > kill_at and not any(n["width"] == width for n in notes(Path(folder), "death")):
            note(folder, "death", width=width)
            os.kill(os.getpid(), signal.SIGKILL)

    network.register_forward_pre_hook(step)
    return network
