"""Where newly grown weights start."""

from __future__ import annotations

import math

import torch
from torch import nn

from distsparse.core import Method, Sparsifier, drop, gradient, grow, magnitude
from distsparse.core.growth import grown_values
from distsparse.methods import set_
from distsparse.ops import counter_rng
from distsparse.ops.schedule import constant


def test_values_are_where_grown_and_a_function_of_key_and_position() -> None:
    grown = torch.tensor([[True, False, True], [False, False, True]])
    assert torch.equal(grown_values("zeros", grown, 5, torch.float32), torch.zeros(2, 3))
    values = grown_values("normal", grown, 5, torch.float64)
    # positions 0, 2 and 5; 0.1 · √(2 / 3) of three inputs
    draws = 0.1 * math.sqrt(2 / 3) * counter_rng.normal(5, torch.tensor([0, 2, 5]))
    assert torch.equal(values[grown], draws)
    assert (values[~grown] == 0).all()
    fewer = torch.tensor([[True, False, False], [False, False, True]])
    assert torch.equal(grown_values("normal", fewer, 5, torch.float64)[fewer], draws[[0, 2]])
    assert grown_values("normal", grown, 5, torch.bfloat16).dtype == torch.bfloat16


def updated(grow_init: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and momentum after RigL's drop of one of three active weights, and a growth of one."""
    method = Method(
        sparsity=constant(0.5),
        update=(drop(magnitude, constant(0.4)), grow(gradient)),
        every=1,
        stop=5,
        grow_init=grow_init,  # type: ignore[arg-type]
    )
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=10, seed=3)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    state = sparsifier.state_dict() | {"step": 1, "masks": {"weight": mask}, "targets": {"weight": 3}}
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, 0.1, 0.0], [0.2, 0.0, 0.0]]))
    sparsifier.load_state_dict(state)
    optimizer.state[model.weight]["momentum_buffer"] = torch.ones(2, 3) * mask
    model.weight.grad = torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.0, 3.0]])
    event = sparsifier.step()
    assert event is not None
    assert (event.num_dropped, event.num_grown) == (1, 1)
    return model.weight.detach(), optimizer.state[model.weight]["momentum_buffer"]


def test_a_grown_weight_starts_at_zero_or_at_its_own_draw() -> None:
    weight, _ = updated("zeros")
    assert torch.equal(weight, torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.0, 0.0]]))
    weight, momentum = updated("normal")
    key = counter_rng.key(3, 1, "weight", "grow_init")
    start = 0.1 * math.sqrt(2 / 3) * float(counter_rng.normal(key, torch.tensor([5])))
    torch.testing.assert_close(weight, torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.0, start]]))
    assert torch.equal(momentum, torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))


def test_a_weight_that_comes_back_keeps_its_value() -> None:
    """All are dropped, and the same as many grown at random: some were active before."""
    torch.manual_seed(0)
    model = nn.Conv2d(4, 10, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = set_(sparsity=0.3, delta_T=1, alpha=1.0, grow_init="normal")
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=10, seed=0)
    sparsifier.initialize()
    for _step in range(2):
        before, mask = model.weight.detach().clone(), sparsifier.topology.masks["weight"].clone()
        model(torch.randn(2, 4, 5, 5)).square().mean().backward()
        event = sparsifier.step()
    after, new = model.weight.detach().reshape(10, -1), sparsifier.topology.masks["weight"]
    assert event is not None
    assert torch.equal(after[new & mask], before.reshape(10, -1)[new & mask])
    assert int((new & mask).sum()) > 100
    grown = new & ~mask
    assert int(grown.sum()) > 30
    # 0.1 · √(2 / 36)
    assert 0.7 < float(after[grown].std()) / 0.0236 < 1.3
    assert (after[~new] == 0).all()
