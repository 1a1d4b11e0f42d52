"""Whether a tensor was written to since it was looked at."""

from __future__ import annotations

from torch import Tensor


def place_and_writes(tensor: Tensor) -> object:
    """Return what is no longer equal once a tensor lies elsewhere or was written to through any of its views.

    Torch counts such writes, but not those through ``.data`` or numpy, of collectives, of fused optimizers.
    Nor those to inference tensors, for which what is returned equals nothing.
    """
    return object() if tensor.is_inference() else (tensor.data_ptr(), tensor._version)
