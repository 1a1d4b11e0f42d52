"""An allocation from measured curves: the loss increase of each layer as it is pruned further and further.

The curves are those of a layer sensitivity scan (Han et al. 2015, arXiv:1506.02626, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise

from distsparse.ops.allocation import Shape, apportion, num_active

Curve = Sequence[tuple[float, float]]
"""(sparsity, loss increase), sparsities rising"""

Points = list[tuple[Fraction, Fraction]]


def from_curves(
    shapes: Sequence[Shape], total: int, caps: Sequence[int], *, curves: Sequence[Curve]
) -> list[int]:
    """Choose counts of the smallest summed loss increase, exactly.

    A curve begins at (0, 0); between its points, the largest convex function that never lies above them is
    taken, after each point was raised to the largest loss before it (less than that is noise). So the
    cheapest weights over all layers go first, and of equally cheap ones the same fraction in each layer. No
    layer is sparser than its last point while another has not reached its own; past all of these, layers
    shrink in proportion, and none is left empty while the total allows.

    Args:
        shapes: weight shapes, first dimension the outputs.
        total: active weights over all layers.
        caps: most active weights of each layer.
        curves: one for each layer, of sparsities in [0, 1].

    Raises:
        ValueError: a curve is empty, its sparsities do not rise or lie outside [0, 1], a loss increase is not
            finite, or the total does not fit the caps.
    """
    if not 0 <= total <= sum(caps):
        raise ValueError(f"cannot place {total} active weights in layers with room for {sum(caps)}")
    sizes = [math.prod(shape) for shape in shapes]
    removed = [size - cap for size, cap in zip(sizes, caps, strict=True)]
    chunks = [
        _without_first(_chunks(_envelope(curve), size), gone)
        for curve, size, gone in zip(curves, sizes, removed, strict=True)
    ]
    left = sum(caps) - total
    for cost in sorted({cost for layer in chunks for cost, _ in layer}):
        units = [sum(number for own, number in layer if own == cost) for layer in chunks]
        taken = units if sum(units) <= left else apportion(units, left, units, none_empty=False)
        removed = [gone + more for gone, more in zip(removed, taken, strict=True)]
        left -= sum(taken)
    counts = [size - gone for size, gone in zip(sizes, removed, strict=True)]
    return apportion(counts, total, counts) if left else counts


def _envelope(curve: Curve) -> Points:
    """Return the vertices of the largest convex function below a curve that was made to rise."""
    sparsities = [sparsity for sparsity, _ in curve]
    if not curve or not all(0 <= s <= 1 for s in sparsities) or any(a >= b for a, b in pairwise(sparsities)):
        raise ValueError(f"curve of sparsities {sparsities}: must rise within [0, 1], and have a point")
    if not all(math.isfinite(loss) for _, loss in curve):
        raise ValueError(f"curve of loss increases {[loss for _, loss in curve]}: must be finite")
    highest = accumulate((max(loss, 0.0) for _, loss in curve), max)
    # As text, since 0.99 is less than 99 / 100 in binary and would leave a weight more.
    points = [(Fraction(str(float(s))), Fraction(loss)) for s, loss in zip(sparsities, highest, strict=True)]
    hull = [(Fraction(), Fraction())]
    for sparsity, loss in points:
        if not sparsity:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], (sparsity, loss)):
            hull.pop()
        hull.append((sparsity, loss))
    return hull


def _slope(first: tuple[Fraction, Fraction], second: tuple[Fraction, Fraction]) -> Fraction:
    return (second[1] - first[1]) / (second[0] - first[0])


def _chunks(hull: Points, size: int) -> list[tuple[Fraction, int]]:
    """Return (cost of one weight, number of weights) in the order in which a layer's weights go.

    A weight that lies across a vertex is a chunk of its own, so the costs are those of whole weights.
    """

    def loss(weights: int) -> Fraction:
        at = Fraction(weights, size)
        before, after = next(pair for pair in pairwise(hull) if at <= pair[1][0])
        return before[1] + (at - before[0]) * _slope(before, after)

    last = math.floor(hull[-1][0] * size)
    edges = sorted({min(last, round_(s * size)) for s, _ in hull for round_ in (math.floor, math.ceil)})
    return [((loss(high) - loss(low)) / (high - low), high - low) for low, high in pairwise(edges)]


def _without_first(chunks: list[tuple[Fraction, int]], number: int) -> list[tuple[Fraction, int]]:
    """Return the chunks that are left once a number of weights is gone."""
    rest = []
    for cost, size in chunks:
        gone = min(size, number)
        number -= gone
        rest.append((cost, size - gone))
    return rest


def curve_sparsities(
    curves: Mapping[str, Curve], shapes: Mapping[str, Shape], *, sparsity: float
) -> dict[str, float]:
    """Return each layer's sparsity of the smallest summed loss increase, from plain dictionaries.

    Args:
        curves: (sparsity, loss increase) points of each layer, see :func:`from_curves`.
        shapes: the layers' weight shapes, with the same keys.
        sparsity: global sparsity in [0, 1), met exactly in whole weights.

    Raises:
        ValueError: the keys differ, ``sparsity`` is out of range, or a curve is none.
    """
    if set(curves) != set(shapes):
        raise ValueError(f"curves and shapes name different layers: {sorted(set(curves) ^ set(shapes))}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity = {sparsity!r}: must be at least 0 and less than 1")
    sizes = [math.prod(shape) for shape in shapes.values()]
    total = num_active(sum(sizes), sparsity)
    counts = from_curves(list(shapes.values()), total, sizes, curves=[curves[name] for name in shapes])
    return {name: 1 - count / size for name, count, size in zip(shapes, counts, sizes, strict=True)}
