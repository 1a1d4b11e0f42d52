"""Numbers as integers in the same order."""

from __future__ import annotations

import pytest
import torch

from distsparse.ops.ordered import ordered, width

INF = float("inf")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_in_order(dtype: torch.dtype) -> None:
    least = torch.finfo(dtype).smallest_normal
    values = torch.tensor([-INF, -2.5, -1.0, -least, 0.0, least, 1.0, 1.5, 3e4, INF], dtype=dtype)
    words = unsigned(values)
    assert words == sorted(words)
    assert len(set(words)) == len(words)
    assert words[0] >= 0
    assert words[-1] < 2 ** width(dtype)
    assert unsigned(torch.tensor([-0.0], dtype=dtype)) == unsigned(torch.tensor([0.0], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_whole_numbers_in_order(dtype: torch.dtype) -> None:
    limits = torch.iinfo(dtype)
    middle = limits.max // 2 + limits.min // 2
    values = torch.tensor([limits.min, limits.min + 1, middle, middle + 1, limits.max], dtype=dtype)
    words = unsigned(values)
    assert words == sorted(set(words))
    assert (words[0], words[-1]) == (0, 2 ** width(dtype) - 1)


def unsigned(values: torch.Tensor) -> list[int]:
    return [word % 2**64 for word in ordered(values).tolist()]
