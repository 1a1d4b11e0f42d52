"""Small networks of every kind of layer that is sparsified, for inputs (2, 6, 6) and four classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class View(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(len(inputs), *self.shape)


class SelfAttention(nn.Module):
    """Nine tokens of eight features; with own key and value sizes, the projections are three weights."""

    def __init__(self, *, separate: bool) -> None:
        super().__init__()
        sizes = {"kdim": 4, "vdim": 6} if separate else {}
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)

    def forward(self, inputs: Tensor) -> Tensor:
        keys, values = inputs[..., : self.attention.kdim], inputs[..., : self.attention.vdim]
        outputs, _ = self.attention(inputs, keys, values)
        return outputs


def _initialize(self: nn.Module, inputs: int, outputs: int) -> None:
    nn.Module.__init__(self)
    self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.3)
    self.bias = nn.Parameter(torch.zeros(outputs))


def _forward(self: nn.Module, inputs: Tensor) -> Tensor:
    return inputs @ self.weight + self.bias


Conv1D = type(
    "Conv1D",
    (nn.Module,),
    {"__init__": _initialize, "forward": _forward, "__module__": "transformers.pytorch_utils"},
)
"""like that of transformers: a linear layer whose weight is stored (in, out)"""


def tied() -> nn.Module:
    """Two layers of one weight, between two others."""
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    second.weight = first.weight
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 16), nn.ReLU(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(16, 4)
    )


KINDS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: nn.Sequential(
        View(9, 8), SelfAttention(separate=False), nn.Flatten(), nn.Linear(72, 4)
    ),
    "attention of three projections": lambda: nn.Sequential(
        View(9, 8), SelfAttention(separate=True), nn.Flatten(), nn.Linear(72, 4)
    ),
    "transposed": lambda: nn.Sequential(nn.Flatten(), Conv1D(72, 16), nn.ReLU(), Conv1D(16, 4)),
    "conv1d": lambda: nn.Sequential(
        View(2, 36),
        nn.Conv1d(2, 6, 5, stride=2),
        nn.ReLU(),
        nn.Conv1d(6, 4, 4),
        nn.Flatten(),
        nn.Linear(52, 4),
    ),
    "conv3d": lambda: nn.Sequential(
        View(1, 2, 6, 6), nn.Conv3d(1, 8, (2, 3, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    ),
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(2, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 4),
    ),
    "tied": tied,
}
