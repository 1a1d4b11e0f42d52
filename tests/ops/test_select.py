from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from distsparse.ops.select import top_k_mask


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
