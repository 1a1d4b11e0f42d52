"""Values at which newly grown weights start."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from distsparse.ops import counter_rng

GrowInit = Literal["zeros", "normal"]

NORMAL_SCALE = 0.1
"""of ``normal``: relative to He's initialization"""


def grown_values(
    init: GrowInit, grown: Tensor, key: int, dtype: torch.dtype, *, first_row: int = 0
) -> Tensor:
    """Return (rows, cols) values for the positions ``grown``, and zero elsewhere.

    "normal" has standard deviation 0.1 · √(2 / cols), a tenth of He's initialization of the dense layer: of
    the shape alone, and not of the weights that are left, whose sum may differ in its last bit between ranks.
    A value is a function of key and position, so equal on any rank and after a resume.

    Args:
        init: "zeros" or "normal".
        grown: bool (rows, cols): active now and inactive before the update.
        key: of the layer's random numbers at this step, see :func:`distsparse.ops.counter_rng.key`.
        dtype: of the values; drawn in float64.
        first_row: place of the rows in the whole layer.
    """
    values = torch.zeros(grown.numel(), dtype=dtype, device=grown.device)
    if init == "normal":
        position = grown.reshape(-1).nonzero().squeeze(1)
        first = first_row * grown.shape[1]
        std = NORMAL_SCALE * math.sqrt(2 / grown.shape[1])
        values[position] = (std * counter_rng.normal(key, position + first)).to(dtype)
    return values.reshape(grown.shape)
