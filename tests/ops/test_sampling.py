from __future__ import annotations

import pytest
import torch

from distsparse.ops import counter_rng, sampling


@pytest.mark.parametrize("share", [0.003, 0.1, 0.5, 0.98])
def test_the_bounds_nearly_always_hold(share: float) -> None:
    """2000 sorted samples of 1000 uniform numbers: the threshold's own rank is known."""
    samples = counter_rng.uniform(1, torch.arange(2_000_000)).reshape(2000, 1000).sort(descending=True).values
    low, high = sampling.bracket(1000, share)
    threshold = 1 - share
    held = torch.ones(2000, dtype=torch.bool)
    if low <= 1000:
        held &= samples[:, low - 1] <= threshold
    if high >= 1:
        held &= samples[:, high - 1] >= threshold
    assert held.double().mean() > 0.994
    # Narrow too: twice three standard deviations, and what is rounded.
    width = min(low, 1000) - max(high, 0)
    assert width <= 6 * (1000 * share * (1 - share)) ** 0.5 + 6


def test_bounds_may_be_past_either_end() -> None:
    """By hand: 10 · 0.01 ± (3 √(0.1 · 0.99) + 2)."""
    assert sampling.bracket(10, 0.01) == (4, -3)
    assert sampling.bracket(10, 0.99) == (13, 6)
    assert sampling.bracket(1, 0.5) == (4, -3)


@pytest.mark.parametrize("num_entries", [1 << 14, 2_359_296, 25_502_912])
def test_samples_are_distinct_and_spread(num_entries: int) -> None:
    num = sampling.size_for(num_entries)
    places = torch.arange(num) * sampling.stride(num_entries) % num_entries
    gaps = places.sort().values.diff()
    assert gaps.min() > 0
    assert gaps.max() <= 6 * num_entries / num
