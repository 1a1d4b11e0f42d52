"""Fully connected networks; LeNet-300-100 (LeCun et al., 1998) is the default setting."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import nn

from distsparse.models.blocks import Width, he_init_, scaled
from distsparse.models.registry import models

Units = Annotated[int, Field(gt=0)]
Hidden = Annotated[
    tuple[Units, ...], Field(description="units of each hidden layer; none makes a linear model")
]


@models.register("mlp")
def mlp(
    input_shape: tuple[int, ...], num_classes: int, *, hidden: Hidden = (300, 100), width: Width = 1.0
) -> nn.Module:
    """Flatten the input, then linear layers with ReLU between them."""
    sizes = [math.prod(input_shape), *(scaled(units, width) for units in hidden), num_classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for in_features, out_features in pairwise(sizes):
        layers += [nn.Linear(in_features, out_features), nn.ReLU()]
    return he_init_(nn.Sequential(*layers[:-1]))
