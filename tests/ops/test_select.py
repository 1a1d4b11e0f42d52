from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from distsparse.ops import counter_rng, select
from distsparse.ops.flags import at
from distsparse.ops.select import top_k_counts, top_k_mask


def oracle(score: Tensor, k: int, candidates: Tensor) -> list[int]:
    """The k best candidates by (score descending, index ascending), with Python's sort."""
    values = score.reshape(-1).tolist()
    pool = [i for i, candidate in enumerate(candidates.reshape(-1).tolist()) if candidate]
    return sorted(sorted(pool, key=lambda i: (-values[i], i))[:k])


def selected(mask: Tensor) -> list[int]:
    return mask.reshape(-1).nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_equals_a_sort_with_many_ties(dtype: torch.dtype) -> None:
    rng = random.Random(0)
    for _ in range(200):
        rows, cols = rng.randint(1, 6), rng.randint(1, 7)
        # Five different values in up to 42 places: nearly every threshold is a tie.
        score = torch.tensor([rng.randint(-2, 2) for _ in range(rows * cols)], dtype=dtype).reshape(
            rows, cols
        )
        candidates = torch.tensor([rng.random() < 0.7 for _ in range(rows * cols)]).reshape(rows, cols)
        k = rng.randint(0, int(candidates.sum()))
        mask = top_k_mask(score, k, candidates)
        assert mask.dtype == torch.bool
        assert mask.shape == score.shape
        assert selected(mask) == oracle(score, k, candidates)


def test_minus_zero_ties_with_zero() -> None:
    score = torch.tensor([-0.0, 0.0, -0.0, 0.0, -1.0])
    assert selected(top_k_mask(score, 3, torch.ones(5, dtype=torch.bool))) == [0, 1, 2]


def test_infinities_are_ordinary_scores() -> None:
    score = torch.tensor([float("-inf"), 1.0, float("inf"), float("-inf")])
    everything = torch.ones(4, dtype=torch.bool)
    assert selected(top_k_mask(score, 1, everything)) == [2]
    assert selected(top_k_mask(score, 3, everything)) == [0, 1, 2]


def test_large_integers_are_compared_exactly() -> None:
    # Neighbours at 2^62 are equal as float64.
    score = torch.tensor([2**62, 2**62 + 1, 2**62 + 2, -(2**63)])
    assert selected(top_k_mask(score, 2, torch.ones(4, dtype=torch.bool))) == [1, 2]


def test_row_major_order_whatever_the_memory_layout() -> None:
    score = torch.zeros(3, 2).t()
    assert top_k_mask(score, 4, torch.ones(3, 2, dtype=torch.bool).t()).tolist() == [
        [True, True, True],
        [True, False, False],
    ]


def test_nan_among_the_candidates_is_an_error_and_elsewhere_is_not() -> None:
    score = torch.tensor([1.0, float("nan"), 2.0])
    with pytest.raises(FloatingPointError, match="NaN"):
        top_k_mask(score, 1, torch.ones(3, dtype=torch.bool))
    assert selected(top_k_mask(score, 1, torch.tensor([True, False, True]))) == [2]


def test_the_arguments_are_left_as_they_are() -> None:
    score, candidates = torch.tensor([3.0, 1.0]), torch.ones(2, dtype=torch.bool)
    top_k_mask(score, 2, candidates)[0] = False
    assert candidates.tolist() == [True, True]


@pytest.mark.parametrize("k", [-1, 3])
def test_more_than_there_are_is_a_bug_of_the_caller(k: int) -> None:
    with pytest.raises(AssertionError, match="of 2 candidates"):
        top_k_mask(torch.zeros(3), k, torch.tensor([True, True, False]))


LARGE = 60_000
"""candidates enough for a bound from a sample"""
KINDS = {
    "normal": lambda generator: torch.randn(LARGE, generator=generator),
    "few values": lambda generator: torch.randint(-2, 3, (LARGE,), generator=generator).float(),
    "constant": lambda generator: torch.full((LARGE,), 1.5),
    "mostly zero": lambda generator: torch.randn(LARGE, generator=generator).clamp(min=1.2) - 1.2,
    "infinities": lambda generator: (
        torch.randn(LARGE, generator=generator).reciprocal() / (torch.rand(LARGE, generator=generator) > 0.2)
    ),
    "sorted": lambda generator: torch.arange(LARGE).float(),
    "a few outliers": lambda generator: (torch.arange(LARGE) == 777).float() * 9,
}


def stable_top(score: Tensor, k: int, candidates: Tensor) -> Tensor:
    """The mask of the k best candidates, by a stable sort."""
    pool = candidates.nonzero().squeeze(1)
    order = torch.sort(score[pool].double(), descending=True, stable=True).indices
    mask = torch.zeros_like(candidates)
    mask[pool[order[:k]]] = True
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.0, 0.9, 0.1])
def test_large_layers_equal_a_stable_sort(kind: str, dtype: torch.dtype, share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    score = KINDS[kind](generator).to(dtype)
    candidates = torch.rand(LARGE, generator=generator) < share
    num = int(candidates.sum())
    for k in (1, num // 30, num // 2, num - num // 30, num - 1):
        mask = top_k_mask(score.reshape(200, 300), k, candidates.reshape(200, 300))
        assert torch.equal(mask.reshape(-1), stable_top(score, k, candidates)), k


@pytest.mark.parametrize("k", [3_000, 57_000])
def test_a_sample_that_misleads_costs_time_only(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    score = torch.randn(LARGE, generator=torch.Generator().manual_seed(1))
    everything = torch.ones(LARGE, dtype=torch.bool)
    calls = []
    for wrong in (-5.0, 0.0, 5.0):
        bounds = torch.tensor(wrong), torch.tensor(wrong)
        monkeypatch.setattr(select, "_bracket", lambda *_, bounds=bounds: calls.append(1) or bounds)
        assert torch.equal(top_k_mask(score, k, everything), stable_top(score, k, everything)), wrong
        halves = [lambda half=half: (half, half == half) for half in score.split(LARGE // 2)]
        chosen = stable_top(score, k, everything).split(LARGE // 2)
        assert top_k_counts(halves, k) == [int(half.sum()) for half in chosen]
    assert len(calls) == 6


def test_a_large_layer_ranks_few_of_its_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = []
    best = select._best
    monkeypatch.setattr(select, "_best", lambda scores, k: ranked.append(len(scores)) or best(scores, k))
    score = torch.randn(1_000_000, generator=torch.Generator().manual_seed(2))
    top_k_mask(score, 30_000, torch.ones(1_000_000, dtype=torch.bool))
    top_k_mask(score, 970_000, torch.ones(1_000_000, dtype=torch.bool))
    assert len(ranked) == 2
    assert max(ranked) < 45_000


@pytest.mark.parametrize("place", [0, 12_345, LARGE - 1])
@pytest.mark.parametrize("k", [0, 10, LARGE // 2, LARGE - 20, LARGE - 1])
def test_one_nan_in_a_large_layer_is_found(place: int, k: int) -> None:
    score = torch.randn(LARGE, generator=torch.Generator().manual_seed(3))
    score[place] = float("nan")
    everything = torch.ones(LARGE, dtype=torch.bool)
    with pytest.raises(FloatingPointError, match="NaN"):
        top_k_mask(score, k, everything)
    everything[place] = False
    assert torch.equal(top_k_mask(score, k, everything), stable_top(score, k, everything))


def test_random_words_of_a_large_layer() -> None:
    score = counter_rng.bits(5, torch.arange(LARGE))
    order = sorted(range(LARGE), key=lambda i: (-int(score[i]), i))
    for k in (1_000, LARGE - 1_000):
        mask = top_k_mask(score, k, torch.ones(LARGE, dtype=torch.bool))
        assert selected(mask) == sorted(order[:k])


@pytest.mark.parametrize("kind", KINDS)
def test_counts_over_parts_are_those_of_one_whole(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    score = KINDS[kind](generator)
    candidates = torch.rand(LARGE, generator=generator) < 0.8
    sizes = [10, 40_000, 1, LARGE - 40_011]
    scores, open_ = score.split(sizes), candidates.split(sizes)
    parts = [lambda i=i: (scores[i].reshape(1, -1), open_[i].reshape(1, -1)) for i in range(4)]
    num = int(candidates.sum())
    for k in (0, 1, num // 30, num // 2, num - 1, num):
        chosen = stable_top(score, k, candidates)
        assert top_k_counts(parts, k) == [int(part.sum()) for part in chosen.split(sizes)], k


def test_counts_over_parts_of_different_precision() -> None:
    # 1 + 2^-10 is 1 in bfloat16: bounds are compared in the wider of the two.
    fine = torch.linspace(1 - 2**-9, 1 + 2**-9, LARGE)
    coarse = torch.ones(LARGE, dtype=torch.bfloat16)
    everything = torch.ones(LARGE, dtype=torch.bool)
    num_above = int((fine > 1).sum())
    parts = [lambda: (coarse, everything), lambda: (fine, everything)]
    assert top_k_counts(parts, num_above + 5) == [5, num_above]


def test_nan_in_any_part_is_an_error() -> None:
    bad = torch.tensor([1.0, float("nan")])
    parts = [lambda: (torch.ones(2), torch.ones(2) > 0), lambda: (bad, torch.ones(2) > 0)]
    with pytest.raises(FloatingPointError, match="NaN"):
        top_k_counts(parts, 1)


def test_scores_are_asked_for_a_range_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_CACHED", 7_000)  # the last range is shorter
    score = torch.randn(LARGE, generator=torch.Generator().manual_seed(4))
    candidates = torch.rand(LARGE, generator=torch.Generator().manual_seed(5)) < 0.5
    num, asked = int(candidates.sum()), []

    def scores(index: slice | Tensor) -> Tensor:
        values = at(score, index)
        asked.append(len(values))
        return values

    for k in (0, 1, num // 3, num - 1, num):
        chosen = top_k_mask(scores, k, candidates)
        assert torch.equal(chosen, stable_top(score, k, candidates)), k
        assert top_k_counts([lambda: (scores, candidates), lambda: (-score, ~candidates)], k + 9) == [
            int(part.sum())
            for part in stable_top(
                torch.cat([score, -score]), k + 9, torch.cat([candidates, ~candidates])
            ).split(LARGE)
        ]
    assert max(asked) <= 7_000
