"""Arithmetic of sparse networks: FLOPs of a forward pass and the cost of a training run, relative to dense.

Costs are the theoretical ones of the RigL paper (Evci et al., 2020, arXiv:1911.11134, appendix H): a layer's
FLOPs are proportional to its density. Measured time is :mod:`distsparse.export.latency`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from distsparse.export.probe import evaluating, example_input


class Segment(NamedTuple):
    """A stretch of training steps at one density."""

    num_steps: int
    """optimizer steps, mask updates included."""
    num_dense_gradient_steps: int
    """how many of them need the gradient of inactive weights too."""
    sparse: float
    """f_S / f_D, the sparse forward pass relative to the dense one, from ``inference_flops``."""


def layer_flops(
    model: nn.Module, input_shape: Sequence[int], *, dtype: torch.dtype = torch.float32
) -> dict[str, int]:
    """Return the dense forward FLOPs of one sample for each weight, by its name in ``named_parameters``.

    Counts multiplications and additions (2 per weight and use, biases not counted) in Linear, Conv1d/2d/3d,
    transformers' Conv1D and the projections of MultiheadAttention. A weight used several times (recurrence,
    tied weights) has the sum; one that the forward pass does not use has 0. Runs the model once, in eval mode
    without gradients, and leaves its training mode and gradients as they were.

    Args:
        model: any module that takes one tensor.
        input_shape: shape of one sample, without the batch dimension.
        dtype: of the input; ``torch.long`` for tokens.

    Raises:
        ValueError: a dimension of ``input_shape`` below 1.
    """
    modules = [module for module in model.modules() if any(True for _ in _weights_of(module))]
    counted = {id(weight) for module in modules for weight in _weights_of(module)}
    names = {id(weight): name for name, weight in model.named_parameters() if id(weight) in counted}
    flops = dict.fromkeys(names.values(), 0)

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for weight, count in _flops_of_call(module, args, kwargs, output):
            if id(weight) in names:
                flops[names[id(weight)]] += count

    # Hooks rather than torch's FlopCounterMode: they know the parameter, which the counter does not (tied
    # weights, attention's two projections), and they keep attention off its fused path, which it cannot see.
    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        with evaluating(model), torch.no_grad():
            model(example_input(model, input_shape, dtype=dtype))
    finally:
        for handle in handles:
            handle.remove()
    return flops


def inference_flops(flops: Mapping[str, int], density: Mapping[str, float]) -> float:
    """Return f_S / f_D: the forward FLOPs of the sparse network relative to the dense one.

    Args:
        flops: dense FLOPs by weight name, from ``layer_flops``.
        density: active fraction by weight name; a weight without one is dense.

    Raises:
        ValueError: a density for an unknown weight or outside [0, 1], or no FLOPs at all.
    """
    for name, value in density.items():
        if name not in flops:
            raise ValueError(f"density of {name!r}: no such weight; allowed: {', '.join(flops) or 'none'}")
        if not 0 <= value <= 1:
            raise ValueError(f"density of {name!r} = {value}: allowed: 0 to 1")
    dense = sum(flops.values())
    if dense == 0:
        raise ValueError("flops: the dense forward pass has no FLOPs to compare with")
    return sum(count * density.get(name, 1.0) for name, count in flops.items()) / dense


def training_flops(segments: Iterable[Segment | tuple[int, int, float]]) -> float:
    """Return the FLOPs of a training run relative to the same number of dense steps.

    A dense step costs 3 f_D (forward, gradient of the activations, gradient of the weights), a sparse step
    3 f_S, a step with a dense weight gradient 2 f_S + f_D. One segment gives the published formulas: SET
    f_S / f_D; SNFS (2 f_S + f_D) / (3 f_D); RigL (3 f_S ΔT + 2 f_S + f_D) / (3 f_D (ΔT + 1)), whose period is
    ΔT sparse steps and one update. Pass more segments where the density changes during the run.

    Raises:
        ValueError: no steps at all, more dense-gradient steps than steps, or ``sparse`` outside [0, 1].
    """
    total_steps = 0
    cost = 0.0
    for segment in segments:
        num_steps, num_dense_gradient_steps, sparse = segment
        if not 0 <= num_dense_gradient_steps <= num_steps:
            raise ValueError(f"{segment}: allowed: 0 <= num_dense_gradient_steps <= num_steps")
        if not 0 <= sparse <= 1:
            raise ValueError(f"{segment}: allowed: sparse FLOPs from 0 to 1, relative to dense")
        total_steps += num_steps
        cost += 3 * sparse * num_steps + (1 - sparse) * num_dense_gradient_steps
    if total_steps == 0:
        raise ValueError("segments: the run has no steps")
    return cost / (3 * total_steps)


def _weights_of(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights of one module, not its children, whose FLOPs are counted."""
    if isinstance(module, nn.MultiheadAttention):
        projections = (
            module.in_proj_weight,
            module.q_proj_weight,
            module.k_proj_weight,
            module.v_proj_weight,
        )
        yield from (weight for weight in (*projections, module.out_proj.weight) if weight is not None)
    elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or _is_transformers_conv1d(module):
        yield cast(Tensor, module.weight)


def _flops_of_call(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> list[tuple[Tensor, int]]:
    """Return (weight, FLOPs) of one forward pass of a module for each of its weights."""
    if isinstance(module, nn.MultiheadAttention):
        return _flops_of_attention(module, args, kwargs)
    weight = cast(Tensor, module.weight)
    # Every output value is a dot product with one row of the weight; Conv1D stores it as (in, out).
    num_inputs = len(weight) if _is_transformers_conv1d(module) else weight[0].numel()
    return [(weight, 2 * output.numel() * num_inputs)]


def _flops_of_attention(
    module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[Tensor, int]]:
    """Return (weight, FLOPs) of the projections: each input vector meets each of their weights once."""
    inputs = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
    num_vectors = [inputs[name].shape[:-1].numel() for name in ("query", "key", "value")]
    out_proj: tuple[Tensor, int] = (
        module.out_proj.weight,
        2 * num_vectors[0] * module.out_proj.weight.numel(),
    )
    if module._qkv_same_embed_dim:
        # The stacked query, key and value projections each own a third of the weight.
        return [(module.in_proj_weight, 2 * sum(num_vectors) * module.in_proj_weight.numel() // 3), out_proj]
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    return [*((w, 2 * n * w.numel()) for w, n in zip(weights, num_vectors, strict=True)), out_proj]


def _is_transformers_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")
