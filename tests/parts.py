"""Models, data and configurations of the tests; a configuration names them as ``parts:function``."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from kinds import Conv1D
from torch import Tensor, nn

from distsparse.config import RunConfig, override
from distsparse.core import Sparsifier, load_network
from distsparse.data import Dataset, Split
from distsparse.train import History, LocalReporter, check, train
from distsparse.train.history import Row

TINY: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": [16]},
    "data": {"name": "parts:blobs"},
    "method": {"name": "rigl", "sparsity": 0.7, "delta_T": 3},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "train": {"epochs": 2, "batch_size": 10, "log_every": 4},
    "latency": {"measure": False},
    "launch": {"num_threads": 1},
}
"""24 optimizer steps of a few milliseconds"""
TIMING = ("samples_per_s", "elapsed_s", "wall_s", "train_s", "steps_per_s")


def tiny(values: Mapping[str, Any] | None = None) -> RunConfig:
    """The smallest real run, with values by dotted name."""
    return override(TINY, values or {})


def trained(config: RunConfig, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], History]:
    """Train in this process; return final weights, masks and history."""
    shutil.rmtree(folder, ignore_errors=True)
    history = History()
    reporter = LocalReporter(folder, keep=config.checkpoint.keep)
    train(config, check(config), reporter, history=history)
    return *load_network(Path(reporter.saved()[-1])), history


def untimed(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two mappings of tensors are the same bit for bit."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def blobs(*, samples: int = 120, features: int = 12, classes: int = 3, validation: int = 0) -> Dataset:
    """Points around one centre per class."""
    generator = torch.Generator().manual_seed(7)
    centres = torch.randn(classes, features, generator=generator)
    total = samples + validation + 33
    labels = torch.arange(total) % classes
    inputs = centres[labels] + torch.randn(total, features, generator=generator)
    split = Split(inputs, labels)
    index = torch.arange(total)
    return Dataset(
        name="blobs",
        train=split.take(index[:samples]),
        validation=split.take(index[samples : samples + validation]) if validation else None,
        test=split.take(index[-33:]),
        num_classes=classes,
        input_shape=(features,),
    )


def pictures(
    *, samples: int = 48, size: int = 8, channels: int = 1, crop_padding: int = 0, flip: bool = False
) -> Dataset:
    """Noise in colour."""
    generator = torch.Generator().manual_seed(7)
    shape = (samples + 16, channels, size, size)
    split = Split(
        torch.randint(256, shape, dtype=torch.uint8, generator=generator),
        torch.randint(4, shape[:1], generator=generator),
    )
    return Dataset(
        name="pictures",
        train=split.take(torch.arange(samples)),
        validation=None,
        test=split.take(torch.arange(samples, samples + 16)),
        num_classes=4,
        input_shape=(channels, size, size),
        crop_padding=crop_padding,
        flip=flip,
    )


class Perceptron(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.second(self.dropout(self.first(inputs.flatten(1)).relu()))
        return result


def dropout_mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    hidden: int = 16,
    dropout: float = 0.5,
    pause_s: float = 0.0,
) -> nn.Module:
    """A network whose loss is random, and whose steps take their time."""
    model = Perceptron(math.prod(input_shape), hidden, num_classes, dropout)
    if pause_s:
        model.register_forward_pre_hook(lambda module, args: time.sleep(pause_s))
    return model


EVALUATED: list[int] = []
"""sizes of the batches that `watched` models were evaluated on in this process"""


def watched(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    model = Perceptron(math.prod(input_shape), 8, num_classes, 0.0)

    def watch(module: nn.Module, args: tuple[Tensor]) -> None:
        if not module.training:
            EVALUATED.append(len(args[0]))

    model.register_forward_pre_hook(watch)
    return model


def failing(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    at: int = 13,
    how: Literal["raise", "kill", "nan", "never"] = "raise",
) -> nn.Module:
    """A network that goes wrong in its ``at``-th training forward pass."""
    model = Perceptron(math.prod(input_shape), 8, num_classes, 0.0)
    calls = 0

    def fail(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        nonlocal calls
        calls += module.training and torch.is_grad_enabled()
        if calls < at or how == "never":
            return None
        if how == "raise":
            raise ArithmeticError(f"planted at call {calls}")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return output * math.nan

    model.register_forward_hook(fail)
    return model


def diverging(
    input_shape: tuple[int, ...], num_classes: int, *, at: int = 6, layer: str = "second.weight"
) -> nn.Module:
    """A network that, on rank 1 of several, shifts a mask by one entry right before the step ``at``.

    Its count stays, and so many weights differ that no update makes the ranks equal again by chance.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _plant(at, layer)
    return Perceptron(math.prod(input_shape), 24, num_classes, 0.0)


def _plant(at: int, layer: str) -> None:
    original = Sparsifier.step
    calls = 0

    def step(self: Sparsifier) -> Any:
        nonlocal calls
        if calls == at and torch.distributed.get_rank() == 1:
            flags = self.topology.masks[layer].view(-1)
            flags.copy_(flags.roll(1))
        calls += 1
        return original(self)

    Sparsifier.step = step  # type: ignore[method-assign]


def nothing(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network without a weight to sparsify."""
    return nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(affine=True))


class ByHand(nn.Module):
    """Multiplies one weight by itself, without calling the layer that owns it."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, 16)
        self.last = nn.Linear(16, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = nn.functional.linear(inputs.flatten(1), self.first.weight, self.first.bias)
        return self.last(hidden.relu())


def by_hand(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return ByHand(math.prod(input_shape), num_classes)


def stored_in_out(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A layer whose weight is stored (in, out)."""
    return Conv1D(math.prod(input_shape), num_classes)
