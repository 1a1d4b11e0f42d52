"""Wide residual networks (Zagoruyko & Komodakis, 2016, arXiv:1605.07146)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distsparse.models.blocks import Width, conv3x3, he_init_, image_shape, pooled_classifier, scaled
from distsparse.models.registry import models

Dropout = Annotated[
    float,
    Field(ge=0, lt=1, description="probability of dropping an activation between a block's two convolutions"),
]


class PreActivationBlock(nn.Module):
    """Normalisation and ReLU before each of two 3x3 convolutions, with dropout between them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).

        A projecting shortcut reads the activated input, as in the authors' code.
        """
        active = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        y: Tensor = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return y + shortcut


@models.register("wrn-22-2")
def wrn_22_2(
    input_shape: tuple[int, ...], num_classes: int, *, dropout: Dropout = 0.0, width: Width = 1.0
) -> nn.Module:
    """Build the 22-layer network of widening factor 2: three stages of three blocks, 32, 64 and 128 channels.

    ``width`` multiplies these channels and the 16 of the stem.
    """
    channels = scaled(16, width)
    layers: dict[str, nn.Module] = {"stem": conv3x3(image_shape(input_shape)[0], channels)}
    for number, out_channels in enumerate((scaled(units, width) for units in (32, 64, 128)), start=1):
        blocks = []
        for block in range(3):
            stride = 2 if number > 1 and block == 0 else 1
            blocks.append(PreActivationBlock(channels, out_channels, stride, dropout))
            channels = out_channels
        layers[f"stage{number}"] = nn.Sequential(*blocks)
    layers["bn"] = nn.BatchNorm2d(channels)
    layers["relu"] = nn.ReLU()
    layers["classifier"] = pooled_classifier(channels, num_classes)
    return he_init_(nn.Sequential(OrderedDict(layers)))
