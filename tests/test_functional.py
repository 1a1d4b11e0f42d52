from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distsparse.core import Sparsifier, allocator, magnitude, prune
from distsparse.core.method import Method
from distsparse.functional import (
    approximation_error,
    is_n_of_m,
    n_of_m_mask,
    random_mask,
    rigl_update,
    update,
)
from distsparse.methods import methods, names, srigl
from distsparse.ops.schedule import cubic

WEIGHT = torch.tensor([[0.5, -0.1, 0.0], [0.2, -0.9, 0.0]])
MASK = torch.tensor([[True, True, False], [True, True, False]])
GRADIENT = torch.tensor([[0.1, 0.3, -2.0], [0.4, 0.2, 0.5]])


@pytest.mark.parametrize(
    ("shape", "sparsity", "active"),
    [((10, 100), 0.9, 100), ((7,), 0.5, 3), ((4, 3, 3, 3), 0.75, 27), ((50, 50), 0.99, 25), ((3, 3), 0.0, 9)],
)
def test_random_mask_is_exact(shape: tuple[int, ...], sparsity: float, active: int) -> None:
    mask = random_mask(shape, sparsity=sparsity)
    assert mask.dtype == torch.bool
    assert mask.shape == shape
    assert int(mask.sum()) == active


def test_random_mask_is_a_function_of_the_seed() -> None:
    masks = [random_mask((30, 30), sparsity=0.5, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_random_mask_out_of_range(sparsity: float) -> None:
    with pytest.raises(ValueError, match="must be at least 0 and less than 1"):
        random_mask((2, 2), sparsity=sparsity)


def test_rigl_update_by_hand() -> None:
    # cos(0.1 π) = 0.951: int(0.6 / 2 · 1.951 · 4) = 2 of the four are dropped, -.1 and .2.
    arguments = [tensor.clone() for tensor in (WEIGHT, GRADIENT, MASK)]
    weights, mask = rigl_update(*arguments, 10, total_steps=100, delta_T=10, alpha=0.6, T_end=100)
    assert mask.tolist() == [[True, False, True], [False, True, True]]
    assert torch.equal(weights, torch.tensor([[0.5, 0, 0], [0, -0.9, 0]]))
    for argument, original in zip(arguments, (WEIGHT, GRADIENT, MASK), strict=True):
        assert torch.equal(argument, original)


def test_a_weight_that_comes_back_keeps_its_value_and_a_grown_one_starts_at_zero() -> None:
    gradient = torch.tensor([[0.1, 3.0, -2.0], [0.4, 0.2, 0.5]])
    dirty = WEIGHT.clone()
    dirty[0, 2] = 7.0  # inactive, and so no value at all
    weights, mask = rigl_update(
        dirty, gradient, MASK, 1, total_steps=10, delta_T=1, alpha=0.5, alpha_schedule="constant"
    )
    assert mask.tolist() == [[True, True, True], [False, True, False]]
    assert torch.equal(weights, torch.tensor([[0.5, -0.1, 0.0], [0.0, -0.9, 0.0]]))
    _, mask = rigl_update(
        WEIGHT,
        gradient,
        MASK,
        1,
        total_steps=10,
        delta_T=1,
        alpha=0.5,
        alpha_schedule="constant",
        exclude_dropped=True,
    )
    assert mask.tolist() == [[True, False, True], [False, True, True]]


@pytest.mark.parametrize("step", [0, 5, 80])
def test_unchanged_where_no_update_is_due(step: int) -> None:
    # t > 0, t % ΔT == 0, t ≤ T_end = 75
    weights, mask = rigl_update(WEIGHT, GRADIENT, MASK, step, total_steps=100, delta_T=10)
    assert torch.equal(weights, WEIGHT)
    assert torch.equal(mask, MASK)


def test_of_several_tensors_each_keeps_its_count() -> None:
    weights = {
        "a": WEIGHT,
        "b": torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)),
        "c": torch.ones(5),
    }
    masks = {"a": MASK, "b": random_mask((4, 2, 3, 3), sparsity=0.5), "c": torch.arange(5) < 2}
    gradients = {
        name: torch.arange(float(weight.numel())).reshape(weight.shape) for name, weight in weights.items()
    }
    new_weights, new_masks = rigl_update(weights, gradients, masks, 1, total_steps=100, delta_T=1, alpha=0.6)
    assert list(new_weights) == list(new_masks) == ["a", "b", "c"]
    for name in weights:
        assert new_masks[name].shape == new_weights[name].shape == weights[name].shape
        assert int(new_masks[name].sum()) == int(masks[name].sum())
        assert not torch.equal(new_masks[name], masks[name])
        assert (new_weights[name][~new_masks[name]] == 0).all()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, {}) for name in names() if name != "lottery"),  # it has no update
        ("srigl", {"sparsity": 0.85, "gamma": 0.9, "delta_T": 1}),
        ("snip", {"sparsity": 0.85}),
        ("rigl", {"group": 5, "sparsity": 0.7}),
    ],
)
def test_is_the_sparsifiers_own_update(name: str, values: dict[str, Any]) -> None:
    entry = methods.get(name)
    fast = {
        key: value
        for key, value in {"delta_T": 2, "sparsity": 0.6, "grow_init": "normal", **values}.items()
        if key in entry.schema.model_fields
    }
    method = entry.factory(**fast)
    if "grad_ema" in method.update_needs:
        with pytest.raises(ValueError, match="grad_ema"):
            update(method, {}, {}, {}, 2, total_steps=10)
        return
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=10, seed=5)
    sparsifier.initialize([torch.randn(2, 3, 4, 4)], lambda model, inputs: model(inputs).square().sum())

    def tensors() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        found = sparsifier.weights.items()
        masks = {n: w.unmatrix(sparsifier.topology.masks[n]).clone() for n, w in found}
        return {n: w.parameter.detach().clone() for n, w in found}, masks

    for step in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 4, 4)).square().mean().backward()
        gradients = {n: w.parameter.grad.clone() for n, w in sparsifier.weights.items()}
        weights, masks = tensors()
        requested = dict(sparsifier.topology.requested)
        pure = update(method, weights, gradients, masks, step, total_steps=10, seed=5, requested=requested)
        event = sparsifier.step()
        for got, expected in zip(pure, tensors(), strict=True):
            assert all(torch.equal(got[n], expected[n]) for n in expected)
        assert (event is not None) == (step in method.update_schedule(10))
        optimizer.step()


def test_a_pruning_method_follows_its_own_sparsity() -> None:
    pruning = Method(
        sparsity=cubic(0.8), update=(prune(magnitude, allocation=allocator("uniform")),), every=5, stop=10
    )
    weight = torch.arange(1.0, 41.0).reshape(4, 10)
    dense = torch.ones(4, 10, dtype=torch.bool)
    # 0.8 (1 - 1/8) = 0.7 at half of the way: 28 of 40 are cut.
    weights, masks = update(pruning, {"w": weight}, {"w": weight}, {"w": dense}, 5, total_steps=20)
    assert torch.equal(masks["w"], weight > 28)
    assert torch.equal(weights["w"], weight * (weight > 28))


def test_gradients_do_not_flow_through_the_choice() -> None:
    weights, _ = rigl_update(
        WEIGHT.clone().requires_grad_(), GRADIENT, MASK, 1, total_steps=10, delta_T=1, alpha=0.5
    )
    assert not weights.requires_grad


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"layer '': .* shapes \[\(2, 3\), \(3, 2\), \(2, 3\)\]"):
        rigl_update(WEIGHT, GRADIENT.t(), MASK, 10, total_steps=100)
    with pytest.raises(ValueError, match="the mask bool"):
        rigl_update(WEIGHT, GRADIENT, MASK.float(), 10, total_steps=100)
    with pytest.raises(ValueError, match=r"layer 'b': .* \[None, \(2, 3\), None\]"):
        rigl_update({"a": WEIGHT}, {"a": GRADIENT, "b": GRADIENT}, {"a": MASK}, 10, total_steps=100)
    with pytest.raises(ValueError, match=r"rigl\.alpha = 2\.0"):
        rigl_update(WEIGHT, GRADIENT, MASK, 10, total_steps=100, alpha=2.0)
    with pytest.raises(ValueError, match="T_end = 200"):
        rigl_update(WEIGHT, GRADIENT, MASK, 10, total_steps=100, T_end=200)
    with pytest.raises(FloatingPointError):
        rigl_update(WEIGHT, GRADIENT * float("nan"), MASK, 1, total_steps=10, delta_T=1, alpha=0.5)


def test_an_ablated_neuron_has_no_share_of_the_fan_in() -> None:
    """Without a memory of closed rows, the empty one is known by its mask: the fan-in is 8 / 2, not 8 / 3."""
    mask = torch.tensor([[True] * 4 + [False] * 4, [True] * 4 + [False] * 4, [False] * 8])
    masks = {"a": mask, "z": torch.ones(1, 1, dtype=torch.bool)}
    weights = {"a": torch.ones(3, 8) * mask, "z": torch.ones(1, 1)}
    gradients = {"a": torch.zeros(3, 8), "z": torch.ones(1, 1)}
    method = srigl(delta_T=1, alpha=0.25, gamma=0.6, alpha_schedule="constant")
    _, after = update(method, weights, gradients, masks, 1, total_steps=10)
    # The second neuron keeps 2 (ties go to the lower index): fewer than .6 · 4, though not than .6 · 8 / 3.
    assert after["a"].sum(1).tolist() == [8, 0, 0]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 8), (4, 4), (1, 1), (2, 100)])
@pytest.mark.parametrize("shape", [(3, 8), (2, 10), (2, 3, 3, 3)])
def test_n_of_m_is_the_best_of_all_such_masks(shape: tuple[int, ...], n: int, m: int) -> None:
    """Of every group, padded per row, no other choice of n leaves out less."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(n * m))
    mask = n_of_m_mask(weight, n, m)
    assert mask.shape == shape
    left_out = 0.0
    for row, flags in zip(weight.flatten(1), mask.flatten(1), strict=True):
        for start in range(0, len(row), m):
            group = row[start : start + m].double().square().tolist()
            size = min(n, len(group))
            assert int(flags[start : start + m].sum()) == size
            left_out += min(sum(rest) for rest in itertools.combinations(group, len(group) - size))
    assert approximation_error(weight, mask) == pytest.approx(left_out, abs=1e-9)
    assert is_n_of_m(mask, n, m)
    assert is_n_of_m(weight * mask, n, m)
    assert n == m or is_n_of_m(weight, n, m) == (max(1, weight[0].numel()) <= n)


def test_n_of_m_does_not_reach_over_the_end_of_a_row() -> None:
    mask = torch.tensor([[True, True, False, False, False, True], [True, True, False, False, True, True]])
    assert is_n_of_m(mask, 2, 4)
    assert not is_n_of_m(mask.reshape(1, -1), 2, 4)  # the fifth to the eighth hold three
    with pytest.raises(ValueError, match=r"n = 5, m = 4: .* 0 < n ≤ m"):
        is_n_of_m(mask, 5, 4)
    with pytest.raises(ValueError, match="n = 0"):
        n_of_m_mask(mask.float(), 0, 4)


def test_approximation_error_by_hand() -> None:
    assert approximation_error(WEIGHT, MASK) == 0
    assert approximation_error(WEIGHT, torch.zeros_like(MASK)) == pytest.approx(0.25 + 0.01 + 0.04 + 0.81)
    assert approximation_error(WEIGHT, n_of_m_mask(WEIGHT, 1, 2)) == pytest.approx(0.01 + 0.04)
