"""Allocations from scores, by hand."""

from __future__ import annotations

import random
import typing
from fractions import Fraction
from functools import partial

import pytest
import torch

from distsparse.core import Signals, allocator
from distsparse.core.allocators import AllocationName, Layers, LayerUnits


def layers(**scores: list[float]) -> Layers:
    return {
        name: LayerUnits(
            (1, len(values)),
            torch.ones(1, len(values), dtype=torch.bool),
            partial(torch.tensor, [values]),
            len(values),
        )
        for name, values in scores.items()
    }


def no_signals(name: str, purpose: str) -> Signals:
    raise AssertionError("reads a signal it does not declare")


SCORES = layers(a=[1.0, 3.0, 2.0], b=[10.0, 20.0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 20, 10, 3, 2, 1
        ("global_magnitude", [[0, 0], [0, 1], [0, 2], [1, 2], [2, 2], [3, 2]]),
        # a: 9/9, 4/13, 1/14; b: 400/400, 100/500. A tie goes to the earlier layer.
        ("lamp", [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [3, 2]]),
    ],
)
def test_ranked_counts(name: AllocationName, expected: list[list[int]]) -> None:
    allocation = allocator(name)
    assert [allocation.counts(SCORES, total, no_signals) for total in range(6)] == expected


def test_lamp_sums_only_what_is_active() -> None:
    active = torch.tensor([[True, False, True]])
    a = LayerUnits((1, 3), active, partial(torch.tensor, [[3.0, 4.0, 5.0]]), 3)
    b = LayerUnits((1, 2), torch.ones(1, 2, dtype=torch.bool), partial(torch.tensor, [[3.0, 4.9]]), 2)
    # a: 9 / 34 = .265 and 1; b: 9 / 33.01 = .273 and 1. With the inactive 4 in its sum, 25 / 25 and 9 / 50.
    assert allocator("lamp").counts({"a": a, "b": b}, 3, no_signals) == [1, 2]
    assert allocator("lamp").counts({"a": a, "b": b}, 4, no_signals) == [2, 2]


@pytest.mark.parametrize("name", ["lamp", "global_magnitude"])
def test_zero_scores_can_be_kept(name: AllocationName) -> None:
    assert allocator(name).counts(layers(a=[0.0, 0.0], b=[0.0]), 2, no_signals) == [2, 0]


def test_power_of_erdos_renyi() -> None:
    shapes = {"a": (4, 4), "b": (2, 8)}
    found = {
        name: LayerUnits(shape, torch.ones(shape, dtype=torch.bool), partial(torch.zeros, shape), 16)
        for name, shape in shapes.items()
    }
    # Densities 8/16 : 10/16, so 5.33 and 6.67 of 12; their roots give 5.66 and 6.34.
    assert allocator("erk").counts(found, 12, no_signals) == [5, 7]
    assert allocator("erk", power=0.5).counts(found, 12, no_signals) == [6, 6]
    assert allocator("er", power=0.5).counts(found, 12, no_signals) == [6, 6]


def test_tiles_get_what_their_weights_would() -> None:
    # 4 × 8 in tiles of 2 × 2: 8 units; 4 × 4: 4. A quarter of all units, uniformly.
    found = {
        "a": LayerUnits((4, 8), torch.ones(2, 4, dtype=torch.bool), partial(torch.zeros, 2, 4), 32),
        "b": LayerUnits((4, 4), torch.ones(2, 2, dtype=torch.bool), partial(torch.zeros, 2, 2), 16),
    }
    assert allocator("uniform").counts(found, 3, no_signals) == [2, 1]


def random_layers(rng: random.Random) -> Layers:
    """Layers of units of one weight or two, of which some are active, with scores that tie."""
    found = {}
    wide = rng.choice([1, 2])
    for name in "abcd"[: rng.randint(1, 4)]:
        rows, cols = rng.randint(1, 6), rng.randint(1, 6)
        active = torch.tensor([[rng.random() < 0.8 for _ in range(cols)] for _ in range(rows)])
        score = torch.tensor([[float(rng.randint(0, 5)) for _ in range(cols)] for _ in range(rows)])
        found[name] = LayerUnits((rows, cols * wide), active, score.clone, rows * cols * wide)
    return found


def random_signals(rng: random.Random) -> typing.Callable[[str, str], Signals]:
    def of(name: str, purpose: str) -> Signals:
        curve = [(s, rng.random()) for s in (0.0, 0.3, 0.6, 0.9)]
        return Signals(
            torch.zeros(1, 1),
            key=0,
            grad=torch.tensor([[rng.random(), rng.random()]]),
            loss_curve=torch.tensor(curve, dtype=torch.float64),
        )

    return of


@pytest.mark.parametrize("name", typing.get_args(AllocationName))
def test_totals_are_exact_and_caps_hold(name: AllocationName) -> None:
    rng = random.Random(4)
    allocated = 0
    for _ in range(400):
        found = random_layers(rng)
        caps = [layer.num_active for layer in found.values()]
        total = rng.randint(0, sum(caps))
        if name == "uniform_first_dense" and len(caps) > 1 and total < found["a"].active.numel():
            continue  # a dense first layer takes more than there is
        counts = allocator(name).counts(found, total, random_signals(rng))
        allocated += 1
        assert sum(counts) == total
        assert all(0 <= count <= cap for count, cap in zip(counts, caps, strict=True))
    assert allocated >= (100 if name == "uniform_first_dense" else 400)


def by_rank(ratios: list[list[Fraction]], total: int) -> list[int]:
    """Brute force: the best of all layers one after another, of equals the earlier layer."""
    ranking = sorted((-value, i) for i, layer in enumerate(ratios) for value in layer)
    chosen = [i for _, i in ranking[:total]]
    return [chosen.count(i) for i in range(len(ratios))]


def lamp_scores(values: list[float]) -> list[Fraction]:
    """LAMP, equation 4, in exact numbers: equals are ordered, and each sums over those after it."""
    squares = sorted(Fraction(value) ** 2 for value in values)
    return [square / (sum(squares[i:]) or 1) for i, square in enumerate(squares)]


def test_ranked_allocations_equal_brute_force() -> None:
    rng = random.Random(6)
    for _ in range(400):
        found = random_layers(rng)
        values = [layer.score()[layer.active].tolist() for layer in found.values()]
        total = rng.randint(0, sum(len(layer) for layer in values))
        plain = [[Fraction(value) for value in layer] for layer in values]
        assert allocator("global_magnitude").counts(found, total, no_signals) == by_rank(plain, total)
        lamp = [lamp_scores(layer) for layer in values]
        assert allocator("lamp").counts(found, total, no_signals) == by_rank(lamp, total)
