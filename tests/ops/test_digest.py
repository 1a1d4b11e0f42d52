from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from distsparse.ops.digest import mask_digest, to_hex


def random_mask(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3


@pytest.mark.parametrize("size", [1, 7, 8, 9, 63, 64, 65, 200])
def test_every_single_flip_changes_the_digest(size: int) -> None:
    mask = random_mask(size)
    digests = {int(mask_digest(mask))}
    for i in range(size):
        flipped = mask.clone()
        flipped[i] = ~flipped[i]
        digests.add(int(mask_digest(flipped)))
    assert len(digests) == size + 1


def test_every_place_of_a_lone_active_weight_has_its_own_digest() -> None:
    places = torch.eye(300, dtype=torch.bool)
    assert len({int(mask_digest(place)) for place in places}) == 300


def test_swapped_words_change_the_digest() -> None:
    words = torch.arange(8).reshape(8, 1) >= torch.arange(8)  # 1, 2, … 8 active
    orders = [
        torch.arange(8),
        *(torch.arange(8).roll(shift) for shift in range(1, 8)),
        torch.arange(8).flip(0),
    ]
    assert len({int(mask_digest(words[order])) for order in orders}) == 9


def test_reads_by_position_whatever_the_memory_layout() -> None:
    mask = random_mask(12, 10)
    assert mask_digest(mask.t()) == mask_digest(mask.t().contiguous())
    assert mask_digest(mask.t()) != mask_digest(mask)
    assert mask_digest(mask[0]) == mask_digest(mask[:1])


@pytest.mark.parametrize("cols", [1, 9, 63, 64, 65, 147])
def test_digests_of_row_shards_add_up(cols: int) -> None:
    mask = random_mask(11, cols)
    for cuts in ([0, 11], [0, 4, 11], [0, 1, 2, 7, 11]):
        shards = [mask_digest(mask[a:b], first_row=a) for a, b in pairwise(cuts)]
        assert sum(shards) == mask_digest(mask), cuts
    halves = mask_digest(mask[:5]) + mask_digest(mask[5:])  # without their places
    assert halves != mask_digest(mask)


def test_is_a_scalar_word() -> None:
    digest = mask_digest(random_mask(5, 5))
    assert digest.dtype == torch.int64
    assert digest.shape == ()


def test_hexadecimal() -> None:
    assert to_hex(-1) == "f" * 16
    assert to_hex(255) == "00000000000000ff"


def test_words_and_their_indices_do_not_add_up() -> None:
    # As numbers: {1 + 2^8, 2^16} and {1 + 2^16, 2^8}. With indices 0 and 1 added, both are the same two sums.
    first = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]]).bool()
    second = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]]).bool()
    assert mask_digest(first) != mask_digest(second)
