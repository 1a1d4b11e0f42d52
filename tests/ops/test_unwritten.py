"""A tensor that was written to is told from one that was not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from distsparse.ops.unwritten import place_and_writes

WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda tensor: tensor.mul_(2),
    "through a view": lambda tensor: tensor.reshape(-1)[3:].zero_(),
    "an entry": lambda tensor: tensor.__setitem__((0, 0), 1.0),
    "other memory": lambda tensor: setattr(tensor, "data", torch.zeros(4, 5)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_is_seen(write: Callable[[Tensor], object]) -> None:
    tensor = torch.ones(4, 5)
    note = place_and_writes(tensor)
    assert note == place_and_writes(tensor)
    tensor.sum()
    assert note == place_and_writes(tensor)
    write(tensor)
    assert note != place_and_writes(tensor)


def test_of_an_inference_tensor_nothing_is_known() -> None:
    with torch.inference_mode():
        tensor = torch.ones(3)
    assert place_and_writes(tensor) != place_and_writes(tensor)
