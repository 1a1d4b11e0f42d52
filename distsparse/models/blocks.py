"""What the model families share: initialization, scaled widths, 3x3 convolutions and the head."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

Width = Annotated[
    float, Field(gt=0, description="multiplier of every hidden layer's number of units or channels")
]


def he_init_(model: nn.Module) -> nn.Module:
    """Draw every convolution and linear weight from N(0, 2 / fan_in), zero the biases, and return the model.

    He et al., 2015, arXiv:1502.01852, eq. 10. Normalisation layers keep scale 1 and shift 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def scaled(units: int, width: float) -> int:
    """Return ``units`` times ``width``, rounded, at least 1."""
    return max(1, round(units * width))


def image_shape(input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return ``(channels, height, width)``.

    Raises:
        ValueError: the inputs are no images.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"input_shape = {input_shape}: a convolutional model needs (channels, height, width)"
        )
    return input_shape


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution with padding 1 and no bias: a normalisation follows or precedes it."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def pooled_classifier(channels: int, num_classes: int) -> nn.Sequential:
    """Return global average pooling and the linear classifier: (N, channels, H, W) to (N, num_classes)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
