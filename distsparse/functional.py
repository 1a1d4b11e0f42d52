"""Sparse training as pure functions on plain tensors, for people with their own framework.

The moves are those of :class:`~distsparse.core.Sparsifier`: equal names, weights, gradients, masks, step and
seed give equal masks. What is left to the caller: to sum |gradient| over steps, to zero gradients and
optimizer state where a mask is False, and to skip the optimizer step of an update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from distsparse.core import Context, Method, Signals, Topology
from distsparse.core.growth import grown_values
from distsparse.core.moves import run
from distsparse.methods.params import AlphaSchedule
from distsparse.methods.rigl import rigl
from distsparse.ops import counter_rng
from distsparse.ops.allocation import num_active
from distsparse.ops.select import top_k_mask
from distsparse.ops.structure import Structure

Tensors = Mapping[str, Tensor]
TensorOrTensors = TypeVar("TensorOrTensors", Tensor, Tensors)


def random_mask(shape: Sequence[int], *, sparsity: float, seed: int = 0) -> Tensor:
    """Return a bool mask with exactly the number of active weights that the sparsity asks for.

    Inactive weights are rounded to nearest; which ones is a function of ``seed`` and position only.

    Raises:
        ValueError: ``sparsity`` is not in [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity = {sparsity!r}: must be at least 0 and less than 1")
    candidates = torch.ones(tuple(shape), dtype=torch.bool)
    index = torch.arange(candidates.numel()).reshape(candidates.shape)
    bits = counter_rng.bits(counter_rng.key(seed, "random_mask"), index)
    return top_k_mask(bits, num_active(candidates.numel(), sparsity), candidates)


def n_of_m_mask(weight: Tensor, n: int, m: int) -> Tensor:
    """Return the bool mask of the ``n`` largest magnitudes of every ``m`` inputs of each output.

    Groups lie along the flattened inputs of a row; the last one of a row may be shorter, and none reaches
    over into the next row. Ties go to the lower index.

    Args:
        weight: output-first, of two dimensions or more.
        n: active weights of a group, 0 < n ≤ m.
        m: size of a group.

    Raises:
        ValueError: n or m is out of range.
        FloatingPointError: a weight is NaN.
    """
    _check_n_of_m(n, m)
    structure, rows = Structure(group=m), weight.detach().abs().flatten(1)
    candidates = torch.ones_like(rows, dtype=torch.bool)
    counts = structure.counts(candidates).clamp(max=n)
    return structure.top_k(rows, counts, candidates).reshape(weight.shape)


def is_n_of_m(mask: Tensor, n: int, m: int) -> bool:
    """Tell whether at most ``n`` of every ``m`` inputs of each output are active; see :func:`n_of_m_mask`.

    A tensor of weights is taken for the mask of those that are not zero.

    Raises:
        ValueError: n or m is out of range.
    """
    _check_n_of_m(n, m)
    return bool((Structure(group=m).counts(mask.detach().bool().flatten(1)) <= n).all())


def approximation_error(weight: Tensor, mask: Tensor) -> float:
    """Return ‖weight ∘ mask - weight‖², the squared Frobenius norm of what a mask leaves out."""
    return float(weight.detach().double().masked_fill(mask, 0).square().sum())


def _check_n_of_m(n: int, m: int) -> None:
    if not 0 < n <= m:
        raise ValueError(f"n = {n}, m = {m}: they must be whole numbers with 0 < n ≤ m")


def update(
    method: Method,
    weights: Tensors,
    gradients: Tensors,
    masks: Tensors,
    step: int,
    *,
    total_steps: int,
    seed: int = 0,
    requested: Mapping[str, int] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights and masks after a method's update; equal to the arguments if ``step`` is none of its.

    Grown weights start as the method's ``grow_init`` says, at zero by default; a weight dropped and grown
    again by one update keeps its value.

    Args:
        method: what to do, e.g. ``distsparse.methods.set_(delta_T=50)``.
        weights: output-first tensors of one dimension or more, by layer; left as they are.
        gradients: *dense* gradients of the loss, already averaged over processes; same names and shapes.
        masks: bool; same names and shapes.
        step: number of optimizer steps done before this one.
        total_steps: optimizer steps of the whole run.
        seed: of random choices.
        requested: active weights that an allocation gave to each layer, as ``sparsifier.topology.requested``
            has them; unless given what the masks hold. Where rows or groups hold fixed counts they differ.

    Raises:
        ValueError: names or shapes differ, a mask is not bool, T_end lies past the run, or the method needs
            a history of gradients (SNFS).
        FloatingPointError: a score is NaN.
    """
    for name in sorted({*weights, *gradients, *masks}):
        shapes = [tuple(of[name].shape) if name in of else None for of in (weights, gradients, masks)]
        if len(set(shapes)) > 1 or masks[name].dtype != torch.bool:
            raise ValueError(
                f"layer {name!r}: weight, gradient and mask have shapes {shapes}; they must be equal, "
                "and the mask bool"
            )
    if missing := method.update_needs - {"grad", "grad_abs"}:
        raise ValueError(f"the method reads {', '.join(sorted(missing))}, which one call cannot know")
    if not method.is_update_step(step, total_steps):
        return dict(weights), dict(masks)

    def matrix(tensor: Tensor) -> Tensor:
        return tensor.detach().reshape(tensor.shape[0], -1)

    def signals(name: str, purpose: str) -> Signals:
        key = counter_rng.key(seed, step, name, purpose)
        return Signals(weight=matrix(weights[name]), key=key, grad=matrix(gradients[name]))

    matrices = {name: matrix(masks[name]) for name in weights}
    units = method.structure.units
    # Every open row of a constant fan-in has a weight, so a row without any is one that was ablated.
    constant_fan_in = method.structure.group == "row"
    before = Topology(
        matrices,
        targets={name: int(units(mask).sum()) for name, mask in matrices.items()},
        allowed={n: m.any(1, keepdim=True) for n, m in matrices.items()} if constant_fan_in else {},
        requested=requested or {},
    )
    sizes = {name: tuple(weight.shape) for name, weight in weights.items()}
    progress = method.progress(step, total_steps)
    sparsity = method.sparsity_at(step, total_steps)
    context = Context(before, before, sizes, signals, progress, sparsity, method.structure)
    after = {name: mask.reshape(sizes[name]) for name, mask in run(method.update, context).masks.items()}

    def values(name: str) -> Tensor:
        kept = torch.where(after[name] & masks[name], weights[name].detach(), 0)
        key = counter_rng.key(seed, step, name, "grow_init")
        grown = matrix(after[name] & ~masks[name])
        return kept + grown_values(method.grow_init, grown, key, kept.dtype).reshape(kept.shape)

    return {name: values(name) for name in weights}, after


def rigl_update(
    weights: TensorOrTensors,
    gradients: TensorOrTensors,
    mask: TensorOrTensors,
    step: int,
    *,
    total_steps: int,
    delta_T: int = 100,
    alpha: float = 0.3,
    alpha_schedule: AlphaSchedule = "cosine",
    T_end: float = 0.75,
    exclude_dropped: bool = False,
) -> tuple[TensorOrTensors, TensorOrTensors]:
    """Return weights and masks after RigL's update of one tensor, or of several by name; see :func:`update`.

    Nothing in it is random: ties go to the lower index.

    Raises:
        ValueError: as :func:`update`, and a keyword of :func:`~distsparse.methods.rigl` out of range.
        FloatingPointError: a gradient is NaN.
    """
    method = rigl(
        delta_T=delta_T,
        alpha=alpha,
        alpha_schedule=alpha_schedule,
        T_end=T_end,
        exclude_dropped=exclude_dropped,
    )
    if isinstance(weights, Tensor):
        one, masks = update(method, {"": weights}, {"": gradients}, {"": mask}, step, total_steps=total_steps)
        return one[""], masks[""]
    return update(method, weights, gradients, mask, step, total_steps=total_steps)
