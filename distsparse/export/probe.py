"""Run a model for a measurement and leave it as it was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode, then give every module back the mode it had.

    Modules are restored one by one: a frozen normalisation may be in eval mode inside a training model.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def example_input(
    model: nn.Module, input_shape: Sequence[int], *, batch_size: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return a ``(batch_size, *input_shape)`` tensor on the model's device.

    Floating point values are standard normal from a private generator, so that the global random state is not
    touched; integers are zero, which is a valid token of every vocabulary.

    Raises:
        ValueError: ``batch_size`` or a dimension of ``input_shape`` below 1.
    """
    shape = (batch_size, *input_shape)
    if min(shape) < 1:
        raise ValueError(f"(batch_size, *input_shape) = {shape}: every dimension must be at least 1")
    device = device_of(model)
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer, or the CPU for a model without any."""
    tensors = (tensor for group in (model.parameters(), model.buffers()) for tensor in group)
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
