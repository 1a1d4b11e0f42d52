"""Inactive weights and all optimizer state of their shape are exactly zero, under any torch optimizer."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn, optim

from distsparse.core import Sparsifier
from distsparse.methods import rigl

OPTIMIZERS = {
    "sgd": partial(optim.SGD, lr=0.1),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": partial(optim.Adam, weight_decay=0.1),
    "amsgrad": partial(optim.AdamW, amsgrad=True),
    "adagrad": partial(optim.Adagrad, initial_accumulator_value=0.1),
    "rmsprop": partial(optim.RMSprop, momentum=0.9, centered=True),
    "rprop": optim.Rprop,
    "radam": partial(optim.RAdam, weight_decay=0.1),
    "nadam": partial(optim.NAdam, weight_decay=0.1),
    "adamax": partial(optim.Adamax, weight_decay=0.1),
    "adadelta": partial(optim.Adadelta, weight_decay=0.1),
    "asgd": partial(optim.ASGD, weight_decay=0.1),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10))


def backward(model: nn.Module, step: int) -> None:
    inputs = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step))
    model(inputs).square().sum().backward()


def state_of_weight_shape(sparsifier: Sparsifier, optimizer: optim.Optimizer) -> dict[str, list[Tensor]]:
    """The weight, its gradient and its optimizer state, by layer, as matrices."""
    found = {}
    for name, weight in sparsifier.weights.items():
        tensors = [weight.parameter.detach(), weight.parameter.grad]
        tensors += [v for v in optimizer.state[weight.parameter].values() if torch.is_tensor(v)]
        found[name] = [
            weight.matrix(t) for t in tensors if t is not None and t.shape == weight.parameter.shape
        ]
    return found


def assert_zero_where_inactive(sparsifier: Sparsifier, optimizer: optim.Optimizer) -> int:
    num = 0
    for name, tensors in state_of_weight_shape(sparsifier, optimizer).items():
        mask = sparsifier.topology.masks[name]
        for tensor in tensors:
            num += 1
            assert (tensor[~mask] == 0).all()
            assert torch.isfinite(tensor).all()
    return num


@pytest.mark.parametrize("skip_optimizer_step", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_inactive_is_zero_after_every_step(name: str, skip_optimizer_step: bool) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    method = rigl(sparsity=0.8, delta_T=3, T_end=1.0, skip_optimizer_step=skip_optimizer_step)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=11, seed=0)
    sparsifier.initialize()
    skipped = checked = 0
    for step in range(11):
        optimizer.zero_grad()
        backward(model, step)
        before = dict(sparsifier.topology.masks)
        event = sparsifier.step()
        assert_zero_where_inactive(sparsifier, optimizer)
        if event:
            assert event.num_grown > 0
            for layer, tensors in state_of_weight_shape(sparsifier, optimizer).items():
                grown = sparsifier.topology.masks[layer] & ~before[layer]
                weight, gradient, *state = (tensor[grown] for tensor in tensors)
                # A grown weight takes its first gradient at the next step.
                assert (gradient != 0).any() == (skip_optimizer_step and bool(grown.any()))
                assert all((tensor == 0).all() for tensor in (weight, *state))
        if event and event.skip_optimizer_step:
            skipped += 1
        else:
            optimizer.step()
        checked = assert_zero_where_inactive(sparsifier, optimizer)
    assert skipped == (3 if skip_optimizer_step else 0)
    # All that the optimizer keeps for each weight has been looked at, beside the weight and its gradient.
    kept = sum(
        torch.is_tensor(value) and value.shape == weight.parameter.shape
        for weight in sparsifier.weights.values()
        for value in optimizer.state[weight.parameter].values()
    )
    assert checked == 4 + kept
    assert kept > 0 or name == "sgd"


def test_active_weights_train_as_without_a_sparsifier() -> None:
    """Adam on the active weights alone, as a plain dense parameter, gives the same values."""
    layer = nn.Linear(6, 4, bias=False)
    optimizer = optim.AdamW(layer.parameters(), lr=0.01)
    method = rigl(sparsity=0.5, delta_T=100)
    sparsifier = Sparsifier.attach(method, layer, optimizer, total_steps=1000, seed=0)
    sparsifier.initialize()
    mask = sparsifier.topology.masks["weight"]
    alone = nn.Parameter(layer.weight.detach()[mask].clone())
    optimizer_alone = optim.AdamW([alone], lr=0.01)
    for step in range(10):
        gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        layer.weight.grad = gradient.clone()
        alone.grad = gradient[mask]
        sparsifier.step()
        optimizer.step()
        optimizer_alone.step()
    assert torch.equal(layer.weight.detach()[mask], alone.detach())


def test_what_an_optimizer_makes_of_zero_over_zero_is_zero() -> None:
    layer = nn.Linear(6, 4)
    optimizer = optim.Adam(layer.parameters(), eps=0.0)
    sparsifier = Sparsifier.attach(rigl(sparsity=0.5), layer, optimizer, total_steps=1000, seed=0)
    sparsifier.initialize()
    layer(torch.ones(1, 6)).sum().backward()
    sparsifier.step()
    optimizer.step()
    assert assert_zero_where_inactive(sparsifier, optimizer) == 4


def test_an_optimizer_step_without_a_sparsifier_step_stays_on_the_topology() -> None:
    model = network()
    optimizer = optim.Adam(model.parameters())
    sparsifier = Sparsifier.attach(rigl(sparsity=0.9), model, optimizer, total_steps=1000, seed=0)
    sparsifier.initialize()
    backward(model, 0)
    optimizer.step()  # with dense gradients
    model.zero_grad()
    assert_zero_where_inactive(sparsifier, optimizer)


def test_a_wrapped_optimizer_is_hooked_inside() -> None:
    class Wrapper:  # as accelerate's: step() delegates
        def __init__(self, optimizer: optim.Optimizer) -> None:
            self.optimizer = optimizer

    model = network()
    inner = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier.attach(rigl(sparsity=0.9), model, Wrapper(inner), total_steps=1000, seed=0)
    sparsifier.initialize()
    backward(model, 0)
    inner.step()
    model.zero_grad()
    assert assert_zero_where_inactive(sparsifier, inner) == 4
