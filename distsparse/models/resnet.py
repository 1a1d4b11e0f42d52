"""Residual networks for small images (He et al., 2016, arXiv:1512.03385, sections 3.3 and 4.2)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distsparse.models.blocks import Width, conv3x3, he_init_, image_shape, pooled_classifier, scaled
from distsparse.models.registry import models

Shortcut = Annotated[
    Literal["A", "B"],
    Field(
        description="where the shape changes: A pads with zero channels, B projects with a 1x1 convolution"
    ),
]


class PaddedShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, and zeros for the new channels; it has no parameters."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + new_channels, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to the shortcut before the last ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


@models.register("resnet20")
def resnet20(
    input_shape: tuple[int, ...], num_classes: int, *, shortcut: Shortcut = "A", width: Width = 1.0
) -> nn.Module:
    """Build the paper's 20-layer CIFAR network: three stages of three blocks with 16, 32 and 64 channels.

    Option A is the paper's choice for CIFAR.
    """
    stages = [(scaled(channels, width), 3) for channels in (16, 32, 64)]
    return _resnet(input_shape, num_classes, stages, shortcut)


@models.register("resnet18")
def resnet18(input_shape: tuple[int, ...], num_classes: int, *, width: Width = 1.0) -> nn.Module:
    """Build the 18-layer network with a stem for small images: a 3x3 convolution of stride 1, no max-pooling.

    Four stages of two blocks with 64, 128, 256 and 512 channels, and projections (option B) as shortcuts.
    """
    stages = [(scaled(channels, width), 2) for channels in (64, 128, 256, 512)]
    return _resnet(input_shape, num_classes, stages, "B")


def _resnet(
    input_shape: tuple[int, ...], num_classes: int, stages: list[tuple[int, int]], shortcut: Literal["A", "B"]
) -> nn.Module:
    """Return stem, stages of (channels, number of blocks) and classifier; later stages halve the image."""
    channels = stages[0][0]
    layers: dict[str, nn.Module] = {
        "stem": nn.Sequential(
            OrderedDict(
                conv=conv3x3(image_shape(input_shape)[0], channels),
                bn=nn.BatchNorm2d(channels),
                relu=nn.ReLU(),
            )
        )
    }
    for number, (out_channels, num_blocks) in enumerate(stages, start=1):
        blocks = []
        for block in range(num_blocks):
            stride = 2 if number > 1 and block == 0 else 1
            blocks.append(BasicBlock(channels, out_channels, stride, shortcut))
            channels = out_channels
        layers[f"stage{number}"] = nn.Sequential(*blocks)
    layers["classifier"] = pooled_classifier(channels, num_classes)
    return he_init_(nn.Sequential(OrderedDict(layers)))


def _shortcut(in_channels: int, out_channels: int, stride: int, option: Literal["A", "B"]) -> nn.Module:
    """Return the identity where the shape stays, else the shortcut of the option."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if option == "A":
        return PaddedShortcut(out_channels - in_channels, stride)
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))
