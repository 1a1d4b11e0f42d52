"""Convert a trained sparse network for deployment: its sparse layers run on compressed weights.

Torch's own CSR product (MKL on x86) does the arithmetic. The choices below are measured ones, one thread:

- int32 indices, which MKL takes as they are; int64 ones are converted at each call (up to 2.3x slower).
- Products with the transposed block of samples, over which MKL vectorises; below four samples a product per
  sample is faster (3x for one sample of 3072 inputs).
- Blocks of 64 samples. The columns of 512 samples at 3072 inputs leave the cache: 2.8x slower in one product.
- im2col by a strided view, one sample at a time: ``F.unfold`` alone takes longer than the sparse product.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distsparse.export.formats import Csr, csr, torch_csr

_BLOCK = 64
_MIN_BLOCK = 4
Convertible = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class _CsrLayer(nn.Module):
    """Weight in CSR and a bias, as plain buffers: the state dict holds only dense tensors."""

    row_ptr: Tensor
    cols: Tensor
    values: Tensor
    bias: Tensor

    def __init__(self, weight: Csr, *, bias: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        self.register_buffer("row_ptr", weight.row_ptr)
        self.register_buffer("cols", weight.cols)
        self.register_buffer("values", weight.values)
        self.register_buffer("bias", bias)
        self._link()

    def _link(self) -> None:
        # Made once over the buffers' memory: it would cost 2 µs a call, as much as a small product.
        self._matrix = torch_csr(Csr(self.shape, self.row_ptr, self.cols, self.values))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._link()
        return self

    # Torch cannot copy CSR tensors.
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_matrix"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._link()

    def extra_repr(self) -> str:
        """Return the shape, the number of weights and the sparsity."""
        (num_out, num_in), nnz = self.shape, self.values.numel()
        return f"{num_in} -> {num_out}, {nnz} weights, sparsity {1 - nnz / (num_out * num_in):.4f}"


class CsrLinear(_CsrLayer):
    """``nn.Linear`` for inference with its weight in CSR; takes (..., in_features); CPU, fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T + bias``, contiguous like the dense layer's, for a later ``view``."""
        num_out, num_in = self.shape
        samples = x.reshape(-1, num_in)
        if 0 < len(samples) < _MIN_BLOCK:
            y = torch.cat([torch.addmv(self.bias, self._matrix, sample) for sample in samples])
        else:
            bias = self.bias.unsqueeze(1)
            y = x.new_empty(len(samples), num_out)
            for i in range(0, len(samples), _BLOCK):
                y[i : i + _BLOCK] = torch.addmm(bias, self._matrix, samples[i : i + _BLOCK].t()).t()
        return y.view(*x.shape[:-1], num_out)


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution, one entry per spatial dimension; ``padding`` in the order of ``F.pad``."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]


class CsrConv(_CsrLayer):
    """Convolution for inference with its (out_channels, in_channels · kernel) weight in CSR; CPU, fp32."""

    def __init__(self, weight: Csr, *, bias: Tensor, window: Window) -> None:
        super().__init__(weight, bias=bias)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of (batch, channels, *spatial), or of one sample without batch."""
        num_spatial = len(self.window.kernel)
        if x.dim() == num_spatial + 1:
            unbatched: Tensor = self.forward(x.unsqueeze(0))
            return unbatched.squeeze(0)
        padded = F.pad(x, self.window.padding) if any(self.window.padding) else x
        size = _output_size(padded.shape[2:], self.window)
        y = x.new_empty(len(x), self.shape[0], *size)
        bias = self.bias.unsqueeze(1)
        for sample, out in zip(padded, y.flatten(2), strict=True):
            torch.addmm(bias, self._matrix, _columns(sample, self.window, size), out=out)
        return y

    def extra_repr(self) -> str:
        """Return the shape, the number of weights, the sparsity and the geometry."""
        return f"{super().extra_repr()}, {self.window}"


def to_csr(model: nn.Module, *, min_sparsity: float = 0.8) -> nn.Module:
    """Return an inference copy of ``model`` whose sparse Linear and Conv1d/2d/3d layers hold CSR weights.

    The exact zeros of a weight are left out, whichever method made them. A layer stays dense if its sparsity
    is zero or below ``min_sparsity``, if it is a grouped convolution or pads otherwise than with zeros, if it
    is a subclass or re-parametrized, or if an ``nn.TransformerEncoderLayer`` reads its weight directly. Tied
    weights share one CSR matrix. The copy has the model's training mode; its parameters require no gradient.

    Args:
        model: on the CPU, in fp32.
        min_sparsity: in [0, 1]. CSR is smaller than dense from 0.5 on, but faster only from about 0.8.

    Raises:
        ValueError: ``min_sparsity`` out of range, or a weight to convert that is not fp32 on the CPU.
    """
    if not 0 <= min_sparsity <= 1:
        raise ValueError(f"min_sparsity = {min_sparsity}: allowed: 0 to 1")
    converted = copy.deepcopy(model).requires_grad_(False)
    weights: dict[Tensor, Csr] = {}
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in _convertible_layers(converted):
        sparsity = 1 - int(layer.weight.count_nonzero()) / layer.weight.numel()
        if sparsity == 0 or sparsity < min_sparsity:
            continue
        _check_runs(layer.weight, name)
        if layer.weight not in weights:
            weights[layer.weight] = csr(layer.weight.flatten(1))
        replacements[layer] = _compressed(layer, weights[layer.weight])
    for parent in list(converted.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                parent.add_module(name, replacements[child])
    return replacements.get(converted, converted)


def _convertible_layers(model: nn.Module) -> list[tuple[str, Convertible]]:
    """Return the layers whose forward pass is known to be replaceable, by name."""
    # Its fused path reads linear1.weight and linear2.weight past the layers' forward.
    pinned = {c for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer) for c in m.children()}
    return [
        (name, module)
        for name, module in model.named_modules()
        # A subclass may compute something else: attention's out_proj and parametrized layers are subclasses.
        if type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        and isinstance(module, Convertible)
        and module not in pinned
        and isinstance(module._parameters.get("weight"), nn.Parameter)  # not recomputed by a hook
        and (isinstance(module, nn.Linear) or (module.groups == 1 and module.padding_mode == "zeros"))
    ]


def _check_runs(weight: Tensor, name: str) -> None:
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ValueError(
            f"weight of {name or 'the model'!r}: {weight.dtype} on {weight.device}; allowed: float32 on cpu"
        )


def _compressed(layer: Convertible, weight: Csr) -> nn.Module:
    """Return the inference module of a layer whose weight is already in CSR."""
    bias = torch.zeros(weight.shape[0]) if layer.bias is None else layer.bias.detach()
    replacement = (
        CsrLinear(weight, bias=bias)
        if isinstance(layer, nn.Linear)
        else CsrConv(weight, bias=bias, window=_window(layer))
    )
    return replacement.train(layer.training)


def _window(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Window:
    kernel, dilation = tuple(conv.kernel_size), tuple(conv.dilation)
    if conv.padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    elif conv.padding == "valid":
        sides = [(0, 0) for _ in kernel]
    else:
        sides = [(int(p), int(p)) for p in conv.padding]
    padding = tuple(side for pair in reversed(sides) for side in pair)
    return Window(kernel, tuple(conv.stride), dilation, padding)


def _output_size(padded: Sequence[int], window: Window) -> tuple[int, ...]:
    axes = zip(padded, window.kernel, window.stride, window.dilation, strict=True)
    return tuple(
        (size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation in axes
    )


def _columns(sample: Tensor, window: Window, size: tuple[int, ...]) -> Tensor:
    """Return im2col of one padded sample: (channels · kernel, positions), without a copy for 1x1 kernels."""
    channel, *axes = sample.stride()
    taps = (a * d for a, d in zip(axes, window.dilation, strict=True))
    steps = (a * s for a, s in zip(axes, window.stride, strict=True))
    patches = sample.as_strided(
        (sample.shape[0], *window.kernel, *size), (channel, *taps, *steps)
    )  # (channels, *kernel, *positions)
    return patches.flatten(-len(size)).flatten(0, -2)
