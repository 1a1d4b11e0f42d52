"""Allocations from loss curves: by hand, and against all ways to split a small total."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from fractions import Fraction

import pytest

from distsparse.ops.curves import Curve, curve_sparsities, from_curves

STEEP = [(0.0, 0.0), (0.5, 1.0), (0.9, 5.0)]
GENTLE = [(0.0, 0.0), (0.5, 0.1), (0.9, 0.6)]


def test_the_cheapest_weights_go_first() -> None:
    # Loss per weight of 100: steep .02 to 50, .1 to 90; gentle .002 to 50, .0125 to 90.
    shapes = [(10, 10), (10, 10)]
    expected = {200: [100, 100], 150: [100, 50], 130: [100, 30], 110: [100, 10], 90: [80, 10], 60: [50, 10]}
    expected |= {30: [20, 10], 20: [10, 10]}
    for total, counts in expected.items():
        assert from_curves(shapes, total, [100, 100], curves=[STEEP, GENTLE]) == counts


def test_past_the_last_points_layers_shrink_in_proportion_and_none_is_empty() -> None:
    shapes, caps = [(10, 10), (30, 10)], [100, 300]
    assert from_curves(shapes, 40, caps, curves=[STEEP, STEEP]) == [10, 30]
    assert from_curves(shapes, 20, caps, curves=[STEEP, STEEP]) == [5, 15]
    assert from_curves(shapes, 2, caps, curves=[STEEP, GENTLE]) == [1, 1]
    assert from_curves(shapes, 0, caps, curves=[STEEP, GENTLE]) == [0, 0]


def test_equally_cheap_weights_go_in_proportion() -> None:
    flat = [(0.0, 0.0), (0.99, 0.0)]
    assert from_curves([(10, 10), (30, 10)], 200, [100, 300], curves=[flat, flat]) == [50, 150]
    # 2.5 and 7.5 of 10 go: the remainder is the first's.
    assert from_curves([(10, 10), (30, 10)], 390, [100, 300], curves=[flat, flat]) == [97, 293]


def test_a_curve_is_made_to_rise_and_to_bend_upward() -> None:
    # Raised: 0, .4, .4, 1; the point at .25 lies above the chord from 0 to .5.
    noisy = [(0.0, 0.0), (0.25, 0.4), (0.5, 0.3), (0.75, 1.0)]
    straight = [(0.0, 0.0), (0.5, 0.4), (0.75, 1.0)]
    other = [(0.0, 0.0), (0.9, 0.9)]
    for total in range(41):
        first = from_curves([(5, 4), (4, 5)], total, [20, 20], curves=[noisy, other])
        assert first == from_curves([(5, 4), (4, 5)], total, [20, 20], curves=[straight, other])
    # A pruning that helps is no reason to prune that layer before another.
    helpful, flat = [(0.0, 0.0), (0.5, -3.0)], [(0.0, 0.0), (0.5, 0.0)]
    assert from_curves([(2, 5), (2, 5)], 16, [10, 10], curves=[helpful, flat]) == [8, 8]


def test_a_curve_begins_at_zero_and_may_be_given_without() -> None:
    for curve in ([(0.5, 1.0), (0.9, 5.0)], [(0.0, 0.2), (0.5, 1.0), (0.9, 5.0)]):
        assert from_curves([(10, 10), (10, 10)], 130, [100, 100], curves=[curve, GENTLE]) == [100, 30]


def test_caps_are_what_is_left_to_remove_from() -> None:
    # The second has 60 active, 40 of its cheap half are gone: 10 of them are left before .0125 each.
    assert from_curves([(10, 10), (10, 10)], 150, [100, 60], curves=[STEEP, GENTLE]) == [100, 50]
    assert from_curves([(10, 10), (10, 10)], 145, [100, 60], curves=[STEEP, GENTLE]) == [100, 45]
    # Below its last point already: it keeps what it has while the other has not reached its own.
    assert from_curves([(10, 10), (10, 10)], 60, [100, 4], curves=[STEEP, GENTLE]) == [56, 4]
    with pytest.raises(ValueError, match="cannot place 161 active weights in layers with room for 160"):
        from_curves([(10, 10), (10, 10)], 161, [100, 60], curves=[STEEP, GENTLE])


def below(curve: Curve, at: Fraction) -> Fraction:
    """The largest convex rising function below a curve's points, by its definition: chords of all pairs."""
    points = [(Fraction(), Fraction())]
    for sparsity, loss in curve:
        if sparsity:
            points.append((Fraction(str(sparsity)), max(Fraction(loss), points[-1][1])))
    chords = [
        first[1] + (at - first[0]) * (second[1] - first[1]) / (second[0] - first[0])
        for first, second in itertools.combinations(points, 2)
        if first[0] <= at <= second[0]
    ]
    return min(chords)


def random_curve(rng: random.Random) -> list[tuple[float, float]]:
    sparsities = [*sorted(rng.sample([0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.8], rng.randint(1, 4))), 0.95]
    return [(s, rng.choice([rng.random(), rng.random() ** 4, 0.0, 0.25, -0.1])) for s in sparsities]


def test_the_summed_loss_is_the_least_there_is() -> None:
    rng = random.Random(5)
    compared = 0
    for _ in range(300):
        shapes = [(rng.randint(1, 3), rng.randint(1, 4)) for _ in range(rng.randint(1, 3))]
        sizes = [rows * cols for rows, cols in shapes]
        curves = [random_curve(rng) for _ in shapes]
        caps = [rng.randint(max(1, size - 3), size) for size in sizes]
        # The last measured weight count of each layer; a layer whose cap is below it stays where it is.
        least = [min(size - int(Fraction("0.95") * size), cap) for size, cap in zip(sizes, caps, strict=True)]
        total = rng.randint(0, sum(caps))
        counts = from_curves(shapes, total, caps, curves=curves)
        assert sum(counts) == total
        assert all(0 <= count <= cap for count, cap in zip(counts, caps, strict=True))
        if total < sum(least):
            assert all(count <= low for count, low in zip(counts, least, strict=True))
            continue
        compared += 1

        def loss(split: Sequence[int], curves=curves, sizes=sizes) -> Fraction:
            layers = zip(curves, split, sizes, strict=True)
            return sum((below(curve, 1 - Fraction(k, size)) for curve, k, size in layers), Fraction())

        choices = [range(low, cap + 1) for low, cap in zip(least, caps, strict=True)]
        best = min(loss(split) for split in itertools.product(*choices) if sum(split) == total)
        assert loss(counts) == best
        assert from_curves(shapes, total, caps, curves=curves) == counts
    assert compared > 200


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        ([], r"sparsities \[\]: must rise within \[0, 1\], and have a point"),
        ([(0.5, 1.0), (0.5, 2.0)], r"sparsities \[0\.5, 0\.5\]: must rise"),
        ([(0.5, 1.0), (1.5, 2.0)], r"must rise within \[0, 1\]"),
        ([(float("nan"), 1.0)], "must rise within"),
        ([(0.5, float("inf"))], r"loss increases \[inf\]: must be finite"),
    ],
)
def test_bad_curves(curve: Curve, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_curves([(2, 2)], 2, [4], curves=[curve])


def test_plain_dictionaries() -> None:
    shapes = {"steep": (10, 10), "gentle": (5, 20)}
    assert curve_sparsities({"gentle": GENTLE, "steep": STEEP}, shapes, sparsity=0.35) == pytest.approx(
        {"steep": 0.0, "gentle": 0.7}
    )
    with pytest.raises(ValueError, match=r"different layers: \['steep'\]"):
        curve_sparsities({"gentle": GENTLE}, shapes, sparsity=0.35)
    with pytest.raises(ValueError, match=r"sparsity = 1\.0"):
        curve_sparsities({"gentle": GENTLE, "steep": STEEP}, shapes, sparsity=1.0)
