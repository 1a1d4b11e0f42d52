from __future__ import annotations

import pytest
import torch
from torch import nn

from distsparse.ops import kernels
from distsparse.ops.keep import Keep


@pytest.fixture(params=["tensors", "compiled"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(kernels, "LEAST", 0 if request.param == "compiled" else 1 << 60)
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.bfloat16])
def test_zeroes_anything_and_keeps_all_else(dtype: torch.dtype, parameter_dtype: torch.dtype) -> None:
    mask = torch.tensor([False, True, False, False, True, True])
    kept = Keep.of(mask, torch.zeros(6, dtype=parameter_dtype))
    tensor = torch.tensor([float("nan"), 2.5, float("-inf"), -3.0, -0.0, float("nan")], dtype=dtype)
    kept.apply(tensor)
    assert str(tensor.tolist()) == "[0.0, 2.5, 0.0, 0.0, -0.0, nan]"


def test_the_compiled_pass_is_used_and_needs_no_copy_of_the_mask(way: str) -> None:
    mask = torch.tensor([True, False])
    assert (Keep.of(mask, torch.zeros(2)).bits is None) == (way == "compiled")


def test_works_on_a_leaf_that_requires_grad() -> None:
    parameter = nn.Parameter(torch.ones(3))
    Keep.of(torch.tensor([False, True, False]), parameter.detach()).apply(parameter)
    assert parameter.tolist() == [0, 1, 0]
    assert parameter.requires_grad


@pytest.mark.parametrize("layouts", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_is_by_position_not_by_memory(layouts: tuple[int, int]) -> None:
    formats = (torch.contiguous_format, torch.channels_last)
    mask = torch.arange(36).reshape(2, 2, 3, 3) % 5 == 0
    values = torch.arange(1.0, 37.0).reshape(2, 2, 3, 3)
    parameter, gradient = (values.clone(memory_format=formats[layout]) for layout in layouts)
    Keep.of(mask, parameter).apply(gradient)
    assert torch.equal(gradient, values * mask)


def test_memory_of_the_old_one_is_used_again(way: str) -> None:
    mask = torch.tensor([True, False, True])
    first = Keep.of(mask, torch.zeros(3))
    second = Keep.of(~mask, torch.zeros(3), old=first)
    assert way == "compiled" or second.bits is first.bits
    tensor = torch.ones(3)
    second.apply(tensor)
    assert tensor.tolist() == [0, 1, 0]
