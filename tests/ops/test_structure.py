"""Structures by hand and against brute force."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from distsparse.ops.structure import Structure

SCORE = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0], [3.0, 0.0, 4.0, 0.0, 2.0]])


def test_pooled_scores_of_ragged_tiles() -> None:
    tiles = Structure(tile=(2, 2))
    # Rows 0-1 and 2, columns 0-1, 2-3 and 4.
    assert tiles.pool(SCORE, "sum").tolist() == [[16, 24, 15], [3, 4, 2]]
    # √(1 + 4 + 36 + 49), √(9 + 16 + 64 + 81), √(25 + 100), then 3, 4, 2
    expected = torch.tensor([[90.0, 170.0, 125.0], [9.0, 16.0, 4.0]]).sqrt()
    torch.testing.assert_close(tiles.pool(SCORE, "norm"), expected)


def test_a_whole_dimension_is_a_tile() -> None:
    assert Structure(tile=(1, -1)).pool(SCORE, "sum").tolist() == [[15], [40], [9]]
    assert Structure(tile=(-1, 1)).pool(SCORE, "sum").tolist() == [[10, 9, 15, 13, 17]]
    assert torch.equal(Structure().pool(SCORE, "norm"), SCORE)


def test_expand_cuts_the_tiles_that_reach_over_the_edge() -> None:
    tiles = Structure(tile=(2, 2))
    units = torch.tensor([[True, False, True], [False, True, True]])
    mask = tiles.expand(units, (3, 5))
    assert mask.int().tolist() == [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [0, 0, 1, 1, 1]]
    assert torch.equal(tiles.units(mask), units)


@pytest.mark.parametrize("tile", [(1, 1), (2, 2), (2, 3), (1, -1), (-1, 1), (16, 16)])
@pytest.mark.parametrize("shape", [(3, 5), (4, 6), (1, 1)])
def test_units_of_an_expanded_mask_are_the_units(tile: tuple[int, int], shape: tuple[int, int]) -> None:
    structure = Structure(tile=tile)
    units = structure.units(torch.ones(shape, dtype=torch.bool))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(units.shape, generator=generator) < 0.5
    assert torch.equal(structure.units(structure.expand(chosen, shape)), chosen)
    assert structure.pool(torch.ones(shape), "sum").sum() == shape[0] * shape[1]


def test_groups_never_cross_rows() -> None:
    four = Structure(group=4)
    assert four.num_groups(SCORE) == 6
    assert four.grouped(SCORE, -1).tolist() == [
        [1, 2, 3, 4],
        [5, -1, -1, -1],
        [6, 7, 8, 9],
        [10, -1, -1, -1],
        [3, 0, 4, 0],
        [2, -1, -1, -1],
    ]
    assert torch.equal(four.ungrouped(four.grouped(SCORE, -1), SCORE), SCORE)
    assert (Structure(group="row").num_groups(SCORE), Structure().num_groups(SCORE)) == (3, 1)


def test_two_of_four_by_hand() -> None:
    score = torch.tensor([[1.0, 4.0, 3.0, 2.0, 9.0, 9.0], [5.0, 5.0, 5.0, 5.0, 0.0, 1.0]])
    everything = torch.ones_like(score, dtype=torch.bool)
    kept = Structure(group=4).top_k(score, torch.tensor([2, 1, 2, 1]), everything)
    # Ties go to the lower column, and the last two columns are a group of their own.
    assert kept.int().tolist() == [[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1]]


def brute_force(group: int, score: Tensor, counts: Tensor, candidates: Tensor) -> Tensor:
    chosen = torch.zeros_like(candidates)
    count = iter(counts.tolist())
    for row, first in itertools.product(range(score.shape[0]), range(0, score.shape[1], group)):
        columns = [c for c in range(first, min(first + group, score.shape[1])) if candidates[row, c]]
        best = sorted(columns, key=lambda c: (-float(score[row, c]), c))[: next(count)]
        chosen[row, best] = True
    return chosen


@pytest.mark.parametrize("kind", ["distinct", "ties", "infinite", "integers"])
@pytest.mark.parametrize("group", ["row", 2, 3, 4, 16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (5, 7), (4, 16)])
def test_top_k_equals_brute_force(shape: tuple[int, int], group: str | int, kind: str) -> None:
    structure = Structure(group=group)
    draw = random.Random(str((shape, group, kind)))
    generator = torch.Generator().manual_seed(draw.randrange(1000))
    for _ in range(5):
        score = torch.randn(shape, generator=generator)
        if kind == "ties":
            score = score.round()
        elif kind == "infinite":
            score[torch.rand(shape, generator=generator) < 0.5] = -torch.inf
        elif kind == "integers":
            score = torch.randint(-2, 2, shape, generator=generator)
            score[score == -2] = torch.iinfo(torch.int64).min
        candidates = torch.rand(shape, generator=generator) < 0.7
        room = structure.grouped(candidates, False).sum(1)
        counts = torch.tensor([draw.randint(0, n) for n in room.tolist()])
        size = shape[1] if group == "row" else group
        assert torch.equal(
            structure.top_k(score, counts, candidates), brute_force(size, score, counts, candidates)
        )


def test_nan_is_refused_where_it_could_be_chosen() -> None:
    score = torch.tensor([[1.0, torch.nan, 3.0, 4.0]])
    two = Structure(group=4)
    with pytest.raises(FloatingPointError, match="NaN"):
        two.top_k(score, torch.tensor([2]), torch.ones(1, 4, dtype=torch.bool))
    kept = two.top_k(score, torch.tensor([2]), ~score.isnan())
    assert kept.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("group", "target", "expected"),
    [
        ("layer", 7, [7]),
        ("row", 9, [3, 3, 3]),
        ("row", 10, [3, 3, 3]),  # 10 / 3 is nearest to 3
        ("row", 11, [4, 4, 4]),
        ("row", 1, [1, 1, 1]),  # a row is never empty
        ("row", 0, [0, 0, 0]),
        ("row", 15, [5, 5, 5]),
        (4, 9, [2, 1, 2, 1, 2, 1]),  # groups of 4 and of 1
        (4, 6, [1, 1, 1, 1, 1, 1]),
        (4, 15, [4, 1, 4, 1, 4, 1]),
    ],
)
def test_group_counts(group: str, target: int, expected: list[int]) -> None:
    allowed = torch.ones(3, 5, dtype=torch.bool)
    assert Structure(group=group).group_counts(target, allowed).tolist() == expected


def test_closed_rows_hold_nothing_and_the_others_more() -> None:
    allowed = torch.tensor([[True], [False], [True]]).expand(3, 5)
    assert Structure(group="row").group_counts(6, allowed).tolist() == [3, 0, 3]
    assert Structure(group="row").group_counts(40, allowed).tolist() == [5, 0, 5]


@pytest.mark.parametrize("cols", range(1, 14))
@pytest.mark.parametrize("group", ["row", 2, 3, 4, 5, 8])
def test_a_total_of_groups_gives_the_same_groups_again(group: str | int, cols: int) -> None:
    """Otherwise a growth after a drop would fill up to another count than the prune left."""
    structure = Structure(group=group)
    allowed = torch.ones(3, cols, dtype=torch.bool)
    for target in range(3 * cols + 1):
        counts = structure.group_counts(target, allowed)
        assert torch.equal(structure.group_counts(int(counts.sum()), allowed), counts)


@pytest.mark.parametrize("group", ["row", 4])
def test_tile_and_group_exclude_each_other(group: str | int) -> None:
    with pytest.raises(ValueError, match=rf"tile = \(2, 2\) with group = {group!r}: they exclude each other"):
        Structure(tile=(2, 2), group=group)


@pytest.mark.parametrize("group", ["row", 4])
def test_group_counts_of_parts_are_those_of_the_whole(group: Any) -> None:
    allowed = torch.rand(9, 10, generator=torch.Generator().manual_seed(0)) < 0.7
    structure = Structure(group=group)
    expected = structure.group_counts(30, allowed)
    found = []
    for part in (allowed[:5], allowed[5:5], allowed[5:]):

        def of_all(numbers: torch.Tensor) -> torch.Tensor:
            groups = structure.counts(allowed)
            return torch.bincount(groups, minlength=len(numbers))

        found.append(structure.group_counts(30, part, summed=of_all))
    assert torch.equal(torch.cat(found), expected)


def test_the_grid_of_units() -> None:
    for tile in ((1, 1), (2, 3), (1, -1), (-1, 2)):
        structure = Structure(tile=tile)
        for shape in ((4, 6), (5, 7)):
            assert structure.grid(shape) == tuple(structure.units(torch.ones(shape, dtype=torch.bool)).shape)
