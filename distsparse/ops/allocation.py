"""How many weights of each layer are active: exact counts from shapes, a total, and caps.

Every allocation splits the same exact total; a layer that reaches its cap becomes full and what it cannot
hold goes to the others (clipping without redistribution would lose density).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

Shape = Sequence[int]
Allocation = Callable[[Sequence[Shape], int, Sequence[int]], list[int]]
SensitivityNorm = Literal["rms", "l2", "mean_abs"]

MAX_SENSITIVITY_SPARSITY = 0.99


def num_active(num_weights: int, sparsity: float) -> int:
    """Return the exact number of active weights at a sparsity: inactive ones are rounded to nearest."""
    return num_weights - round(sparsity * num_weights)


def apportion(
    shares: Sequence[float], total: int, caps: Sequence[int], *, none_empty: bool = True
) -> list[int]:
    """Split ``total`` in proportion to ``shares``, at most ``caps`` each, exactly.

    Capped entries become full and the rest is solved again; fractions are settled by largest remainder, ties
    to the lower index. While the total allows, no entry with a share is left at zero (``none_empty``): a
    layer without any active weight would cut the network in two.

    Raises:
        ValueError: the total is negative or larger than the caps of the entries that have a share.
    """
    room = sum(cap for share, cap in zip(shares, caps, strict=True) if share > 0)
    if not 0 <= total <= room:
        raise ValueError(f"cannot place {total} active weights in layers with room for {room}")
    # Exact fractions: in floats 1/3 and 10/3 have different remainders, and the tie rule would not hold.
    exact = [Fraction(share) for share in shares]
    full: set[int] = set()
    while True:
        open_ = [i for i, share in enumerate(shares) if share > 0 and i not in full]
        left = total - sum(caps[i] for i in full)
        weight = sum((exact[i] for i in open_), Fraction())
        ideal = {i: left * exact[i] / weight for i in open_}
        newly_full = {i for i in open_ if ideal[i] >= caps[i]}
        if not newly_full:
            break
        full |= newly_full
    counts = [caps[i] if i in full else math.floor(ideal.get(i, 0)) for i in range(len(shares))]
    by_remainder = sorted(open_, key=lambda i: (counts[i] - ideal[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return _without_empty(counts, shares, caps, total) if none_empty else counts


def _without_empty(counts: list[int], shares: Sequence[float], caps: Sequence[int], total: int) -> list[int]:
    """Give each empty entry one unit from the largest, if there are enough units for all."""
    wanted = [i for i, share in enumerate(shares) if share > 0 and caps[i] > 0]
    if total >= len(wanted):
        for i in wanted:
            if counts[i] == 0:
                donor = max(range(len(counts)), key=lambda j: (counts[j], -j))
                counts[donor] -= 1
                counts[i] += 1
    return counts


def uniform(
    shapes: Sequence[Shape], total: int, caps: Sequence[int], *, first_dense: bool = False
) -> list[int]:
    """Give every layer the same density; ``first_dense`` keeps the first layer dense at the others' expense.

    Raises:
        ValueError: ``first_dense`` and the total does not even fill the first layer.
    """
    shares = [float(math.prod(shape)) for shape in shapes]
    if not first_dense or len(shapes) == 1:
        return apportion(shares, total, caps)
    if total < caps[0]:
        raise ValueError(f"a dense first layer takes {caps[0]} active weights, and only {total} are allowed")
    return [caps[0], *apportion(shares[1:], total - caps[0], caps[1:])]


def er(shapes: Sequence[Shape], total: int, caps: Sequence[int], *, power: float = 1.0) -> list[int]:
    """Erdős–Rényi: density ∝ ((n_in + n_out) / (n_in · n_out))^power (SET, Mocanu et al. 2018, equation 1).

    Kernel dimensions do not count: every tap of a convolution gets the density of its channel matrix.
    """
    shares = [((s[0] + s[1]) / (s[0] * s[1])) ** power * math.prod(s) for s in shapes]
    return apportion(shares, total, caps)


def erk(shapes: Sequence[Shape], total: int, caps: Sequence[int], *, power: float = 1.0) -> list[int]:
    """Erdős–Rényi-Kernel: density ∝ ((n_in + n_out + k_h + k_w) / (n_in · n_out · k_h · k_w))^power.

    RigL, Evci et al. 2020, arXiv:1911.11134, section 3; saturated layers become dense and ε is solved again.
    """
    return apportion([(sum(s) / math.prod(s)) ** power * math.prod(s) for s in shapes], total, caps)


def sensitivity(
    shapes: Sequence[Shape], total: int, caps: Sequence[int], *, sensitivities: Sequence[float]
) -> list[int]:
    """Make each layer's sparsity inverse to its gradient sensitivity, at most 0.99.

    The inactive weights are spread as s_l = c / sensitivity_l, with c solved so that the total is exact;
    layers that reach 0.99 stay there (or at the global sparsity, when that is above 0.99). A layer of
    sensitivity zero is as sparse as allowed.

    Args:
        shapes: weight shapes, first dimension the outputs.
        total: active weights over all layers.
        caps: most active weights of each layer.
        sensitivities: one value ≥ 0 for each layer, see :func:`sensitivity_of`.

    Raises:
        ValueError: a sensitivity is negative or not finite, or the total does not fit the caps.
    """
    sizes = [math.prod(shape) for shape in shapes]
    for value in sensitivities:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"sensitivity {value!r}: must be finite and at least 0")
    most = max(MAX_SENSITIVITY_SPARSITY, 1 - total / sum(sizes))
    inactive = sum(sizes) - total
    # Rounded down the limit holds; only where the exact total has no room then, is it rounded up by a weight.
    room = [math.floor(most * size) for size in sizes]
    if sum(room) < inactive:
        room = [min(math.ceil(most * size), size - 1) for size in sizes]
    if sum(room) < inactive:
        room = [math.ceil(most * size) for size in sizes]
    forced = [size - cap for size, cap in zip(sizes, caps, strict=True)]
    if not sum(forced) <= inactive:
        raise ValueError(f"cannot place {total} active weights in layers with room for {sum(caps)}")
    smallest = min((value for value in sensitivities if value > 0), default=1.0) * 1e-6
    shares = [size / max(value, smallest) for size, value in zip(sizes, sensitivities, strict=True)]
    free_room = [max(r - f, 0) for r, f in zip(room, forced, strict=True)]
    extra = apportion(shares, inactive - sum(forced), free_room)
    return [size - f - e for size, f, e in zip(sizes, forced, extra, strict=True)]


def sensitivity_of(
    gradient: Tensor,
    norm: SensitivityNorm = "rms",
    *,
    summed: Callable[[Tensor], Tensor] = lambda numbers: numbers,
) -> float:
    """Return a layer's gradient sensitivity.

    ``rms`` (per weight, so that size does not decide), ``l2`` or ``mean_abs``. ``summed`` adds up numbers
    over all parts of a layer, where the gradient is that of one.
    """
    g = gradient.detach().to(torch.float64)
    terms = [g.square().sum(), g.abs().sum(), g.new_tensor(g.numel())]
    squares, magnitudes, size = summed(torch.stack(terms)).tolist()
    match norm:
        case "rms":
            return math.sqrt(squares / size)
        case "l2":
            return math.sqrt(squares)
        case "mean_abs":
            return float(magnitudes / size)
    raise ValueError(f"norm {norm!r}: allowed are rms, l2, mean_abs")


def sensitivity_sparsities(
    gradients: Mapping[str, Tensor],
    shapes: Mapping[str, Shape],
    *,
    sparsity: float,
    norm: SensitivityNorm = "rms",
) -> dict[str, float]:
    """Return each layer's sparsity, inverse to its gradient sensitivity, from plain dictionaries.

    Args:
        gradients: a gradient tensor of any shape for each layer.
        shapes: the layers' weight shapes, with the same keys.
        sparsity: global sparsity in [0, 1), met exactly in whole weights.
        norm: see :func:`sensitivity_of`.

    Raises:
        ValueError: the keys differ, or ``sparsity`` is out of range.
    """
    if set(gradients) != set(shapes):
        raise ValueError(
            f"gradients and shapes name different layers: {sorted(set(gradients) ^ set(shapes))}"
        )
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity = {sparsity!r}: must be at least 0 and less than 1")
    names = list(shapes)
    sizes = [math.prod(shapes[name]) for name in names]
    counts = sensitivity(
        [shapes[name] for name in names],
        num_active(sum(sizes), sparsity),
        sizes,
        sensitivities=[sensitivity_of(gradients[name], norm) for name in names],
    )
    return {name: 1 - count / size for name, count, size in zip(names, counts, sizes, strict=True)}
