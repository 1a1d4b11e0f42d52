"""Allocations from scores, by hand."""

from __future__ import annotations

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
        name: LayerUnits(shape, torch.ones(shape, dtype=torch.bool), torch.zeros(shape), 16)
        for name, shape in shapes.items()
    }
    # Densities 8/16 : 10/16, so 5.33 and 6.67 of 12; their roots give 5.66 and 6.34.
    assert allocator("erk").counts(found, 12, no_signals) == [5, 7]
    assert allocator("erk", power=0.5).counts(found, 12, no_signals) == [6, 6]
    assert allocator("er", power=0.5).counts(found, 12, no_signals) == [6, 6]


def test_tiles_get_what_their_weights_would() -> None:
    # 4 × 8 in tiles of 2 × 2: 8 units; 4 × 4: 4. A quarter of all units, uniformly.
    found = {
        "a": LayerUnits((4, 8), torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 4), 32),
        "b": LayerUnits((4, 4), torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2), 16),
    }
    assert allocator("uniform").counts(found, 3, no_signals) == [2, 1]
