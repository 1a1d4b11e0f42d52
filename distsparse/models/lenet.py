"""LeNet-5 as Caffe ships it and pruning papers use it (LeCun et al., 1998; Han et al., arXiv:1506.02626)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

from pydantic import Field
from torch import nn

from distsparse.models.blocks import Width, he_init_, image_shape, scaled
from distsparse.models.registry import models

Padding = Annotated[
    int,
    Field(ge=0, le=2, description="zero padding of both convolutions; 2 keeps their size, for small images"),
]


@models.register("lenet5")
def lenet5(
    input_shape: tuple[int, ...], num_classes: int, *, padding: Padding = 0, width: Width = 1.0
) -> nn.Module:
    """Two 5x5 convolutions (20 and 50 channels) with 2x2 max-pooling, then 500 hidden units.

    Without padding an image needs at least 16x16 pixels; with ``padding=2`` 4x4 is enough. ReLU follows every
    hidden layer: Caffe's own has it after the hidden linear layer only, the pruning papers everywhere.

    Raises:
        ValueError: the image is too small for this padding.
    """
    channels, *size = image_shape(input_shape)
    height, breadth = (_size_after_pools(pixels, padding) for pixels in size)
    if height < 1 or breadth < 1:
        raise ValueError(
            f"input_shape = {input_shape}: lenet5 with model.padding = {padding} needs at least "
            f"{16 - 6 * padding} pixels in height and width; allowed: a larger image, or model.padding = 2"
        )
    first, second, units = scaled(20, width), scaled(50, width), scaled(500, width)
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(channels, first, 5, padding=padding),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(first, second, 5, padding=padding),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(second * height * breadth, units),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(units, num_classes),
    }
    return he_init_(nn.Sequential(OrderedDict(layers)))


def _size_after_pools(pixels: int, padding: int) -> int:
    """Return the height or width that is left after both convolutions and poolings."""
    for _ in range(2):
        pixels = (pixels + 2 * padding - 4) // 2
    return pixels
