from __future__ import annotations

import pytest
import torch

from distsparse.ops.packed import gathered, pack, spread, unpack


@pytest.mark.parametrize("cols", [1, 7, 8, 63, 64, 65, 130, 192])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_unpack_undoes_pack(cols: int, share: float) -> None:
    mask = torch.rand(5, cols, generator=torch.Generator().manual_seed(cols)) < share
    words = pack(mask)
    assert words.dtype == torch.int64
    assert words.shape == (5, -(-cols // 64))
    assert torch.equal(unpack(words, cols), mask)


def test_a_column_is_a_bit() -> None:
    mask = torch.zeros(2, 70, dtype=torch.bool)
    mask[0, [0, 3, 63]] = True
    mask[1, [9, 69]] = True
    assert pack(mask).tolist() == [[1 + 2**3 - 2**63, 0], [2**9, 2**5]]


def test_whatever_the_memory_layout() -> None:
    mask = torch.rand(9, 70, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(unpack(pack(mask.t()), 9), mask.t())


def test_words_are_the_same_with_and_without_numpy() -> None:
    mask = torch.rand(7, 192, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(gathered(mask), pack(mask))
    assert torch.equal(spread(pack(mask)), mask)


def test_no_rows() -> None:
    mask = torch.zeros(0, 70, dtype=torch.bool)
    assert pack(mask).shape == (0, 2)
    assert torch.equal(unpack(pack(mask), 70), mask)
