from __future__ import annotations

import pytest
import torch

from distsparse.ops import kernels
from distsparse.ops.flags import above, below, count, kth_largest, places


def test_count_and_places() -> None:
    flags = torch.tensor([[False, True, True], [True, False, False]])
    assert count(flags) == 3
    assert places(flags).tolist() == [1, 2, 3]
    assert count(flags.t()) == 3
    assert places(flags.t()).tolist() == [1, 2, 4]  # row-major, whatever the memory layout
    assert places(torch.zeros(0, dtype=torch.bool)).tolist() == []


# bfloat16 and half take torch's way, as every dtype does on CUDA.
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32]
)
def test_order_and_comparisons(dtype: torch.dtype) -> None:
    values = torch.tensor([3, -1, 2, 2, 5], dtype=dtype)
    assert [kth_largest(values, k).item() for k in range(1, 6)] == [5, 3, 2, 2, -1]
    largest = kth_largest(values, 1)
    assert largest.dtype == dtype
    assert largest.shape == ()
    assert below(values, values[2]).tolist() == [False, True, False, False, False]
    assert above(values, values[2]).tolist() == [True, False, False, False, True]


def test_order_among_many_values_and_in_ranges_without_bins() -> None:
    many = torch.randn(kernels.LEAST + 1, generator=torch.Generator().manual_seed(0))
    for values in (many, many.double(), (1000 * many).long(), torch.cat([many, torch.tensor([torch.inf])])):
        ordered = values.sort(descending=True).values
        for k in (1, 2, 5000, len(values)):
            assert torch.equal(kth_largest(values, k), ordered[k - 1])


def test_nan_is_neither_below_nor_above() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.tensor([float("nan"), 1.0], dtype=dtype)
        assert not below(values, values[1]).any()
        assert not above(values, values[1]).any()
