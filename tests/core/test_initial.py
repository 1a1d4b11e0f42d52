"""Signals of pruning at the initialization, and what SNIP, GraSP and SynFlow keep, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distsparse.core import Signals, Sparsifier, find_weights, gradient_flow, saliency, synaptic_flow
from distsparse.core.initial import initial_signals
from distsparse.core.method import Method
from distsparse.dist import LocalComm
from distsparse.methods import grasp, snip, synflow
from distsparse.models import build
from distsparse.ops.schedule import constant

SNIP_EXAMPLE = torch.tensor([[0.5, -0.3], [0.1, 0.8]])
INPUT, TARGET = torch.ones(1, 2), torch.tensor([[0.0, 1.0]])


def linear(*weights: Tensor) -> nn.Sequential:
    """Linear layers without biases."""
    model = nn.Sequential(*(nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights))
    for layer, weight in zip(model, weights, strict=True):
        layer.weight.data = weight.clone()
    return model


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().sum()


def signals(model: nn.Module, batches, loss_fn, *needs: str) -> dict[str, Signals]:
    weights = {weight.name: weight for weight in find_weights(model)}
    found = initial_signals(frozenset(needs), model, weights, batches, loss_fn, LocalComm())
    return {
        name: Signals(weight=weights[name].matrix(weights[name].parameter.detach()), key=0, **values)
        for name, values in found.items()
    }


def kept(method: Method, model: nn.Module, batches, loss_fn) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=10, seed=0)
    sparsifier.initialize(batches, loss_fn)
    return dict(sparsifier.topology.masks)


def test_snip_worked_example() -> None:
    # The loss is ‖W x - y*‖², without ½: g = 2 (W x - y*) xᵀ = [[.4, .4], [-.2, -.2]].
    found = signals(linear(SNIP_EXAMPLE), [(INPUT, TARGET)], squared_error, "grad")["0.weight"]
    torch.testing.assert_close(found.grad, torch.tensor([[0.4, 0.4], [-0.2, -0.2]]))
    torch.testing.assert_close(saliency.score(found), torch.tensor([[0.20, 0.12], [0.02, 0.16]]))
    # By |g| alone, the .16 of the second row would go.
    mask = kept(snip(sparsity=0.5), linear(SNIP_EXAMPLE), [(INPUT, TARGET)], squared_error)["0.weight"]
    assert mask.tolist() == [[True, False], [False, True]]


def test_snip_ranks_all_layers_together() -> None:
    # y = 10 · (1 · x₁ + 2 · x₂) of x = (1, 1), L = y: |g w| = (10, 20) and 30.
    model = linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0]]))
    masks = kept(snip(sparsity=0.3), model, [INPUT], lambda model, batch: model(batch).sum())
    assert (masks["0.weight"].tolist(), masks["1.weight"].tolist()) == ([[False, True]], [[True]])


def test_gradients_are_the_mean_of_the_batches() -> None:
    batches = [(INPUT, TARGET), (2 * INPUT, TARGET)]
    found = signals(linear(SNIP_EXAMPLE), batches, squared_error, "grad")["0.weight"].grad
    # W x - y* is (.4, .8) for x = (2, 2): its gradient is [[1.6, 1.6], [3.2, 3.2]].
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0], [1.5, 1.5]]))


def test_hessian_product_is_autograds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()
    batches = [(torch.randn(5, 3).double(), torch.randn(5, 2).double()) for _ in range(2)]
    found = signals(model, batches, squared_error, "hessian_grad")

    def loss(first: Tensor, second: Tensor) -> Tensor:
        return sum((torch.tanh(x @ first.T) @ second.T - y).square().sum() for x, y in batches) / 2

    parameters = (model[0].weight.detach(), model[2].weight.detach())
    gradients = torch.autograd.functional.jacobian(loss, parameters)
    _, products = torch.autograd.functional.hvp(loss, parameters, gradients)
    for signal, weight, product in zip(found.values(), parameters, products, strict=True):
        torch.testing.assert_close(signal.hessian_grad, product)
        torch.testing.assert_close(gradient_flow.score(signal), weight * product)


def test_grasp_keeps_what_the_gradient_flow_needs() -> None:
    weight = torch.tensor([[1.0, 3.0, 1.0]])

    def loss(model: nn.Module, batch: object) -> Tensor:
        """w₀² has g = 2, H = 2; -w₁³/6 + 5 w₁ has g = .5, H = -3; (w₂² - w₂³) / 2 has g = -.5, H = -2."""
        w = model[0].weight[0]
        return w[0] ** 2 - w[1] ** 3 / 6 + 5 * w[1] + (w[2] ** 2 - w[2] ** 3) / 2

    found = signals(linear(weight), [0], loss, "hessian_grad")["0.weight"]
    torch.testing.assert_close(gradient_flow.score(found), torch.tensor([[4.0, -4.5, 1.0]]))
    # The second is the largest in size, and yet the first to go.
    mask = kept(grasp(sparsity=0.34, temperature=1.0), linear(weight), [0], loss)["0.weight"]
    assert mask.tolist() == [[True, False, True]]


def test_synaptic_flow_by_hand() -> None:
    # |W₁| 1 = (3, 7), R = 1 · 3 + .5 · 7 = 6.5; signs and the input's values do not matter.
    model = linear(torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([[-1.0, 0.5]]))
    found = signals(model, [(torch.tensor([[5.0, -6.0]]), None)], None, "flow")
    assert found["0.weight"].flow.tolist() == [[1, 1], [0.5, 0.5]]
    assert found["1.weight"].flow.tolist() == [[3, 7]]
    scores = [synaptic_flow.score(found[name]) for name in found]
    assert scores[0].tolist() == [[1, 2], [1.5, 2]]
    assert scores[1].tolist() == [[3, 3.5]]
    assert [float(score.sum()) for score in scores] == [6.5, 6.5]  # the flow is conserved


def test_synaptic_flow_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    signals(model, [torch.zeros(3, 1, 4, 4, dtype=torch.uint8)], None, "flow")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"a tensor of inputs, or .* not dict"):
        signals(model, [{"inputs": 0}], None, "flow")
    with pytest.raises(ValueError, match="batches is empty"):
        signals(model, [], None, "flow")


def test_synflow_rounds_are_exponential() -> None:
    method = synflow(sparsity=0.99, rounds=4)
    # 0.01^(k / 4)
    assert [1 - method.initial_sparsity(k) for k in range(4)] == pytest.approx(
        [0.31623, 0.1, 0.031623, 0.01], rel=1e-4
    )
    assert Method(sparsity=constant(0.9)).initial_sparsity(0) == 0.9


@pytest.mark.parametrize("sparsity", [0.99, 0.998])
def test_synflow_does_not_close_a_layer(sparsity: float) -> None:
    torch.manual_seed(0)
    model = build("mlp", (1, 28, 28), 10, {})
    masks = kept(
        synflow(sparsity=sparsity),
        model,
        [torch.zeros(1, 1, 28, 28)],
        lambda model, batch: model(batch).sum(),
    )
    counts = [int(mask.sum()) for mask in masks.values()]
    total = sum(mask.numel() for mask in masks.values())
    assert sum(counts) == total - round(sparsity * total)
    assert min(counts) > 0
    first, second, last = (mask.float() for mask in masks.values())
    assert (last @ second @ first).any(1).all(), "an output has no path from any input"


def test_temperature_divides_the_outputs() -> None:
    """For L = y², a temperature T scales the gradient by 1/T² and the Hessian product by 1/T⁴."""
    model = nn.Linear(2, 1, bias=False)
    weights = {weight.name: weight for weight in find_weights(model)}
    arguments = (weights, [torch.tensor([[1.0, 2.0]])], lambda net, x: net(x).square().sum(), LocalComm())
    needs = frozenset({"grad", "hessian_grad"})
    plain = initial_signals(needs, model, *arguments)["weight"]
    soft = initial_signals(needs, model, *arguments, temperature=2.0)["weight"]
    torch.testing.assert_close(soft["grad"], plain["grad"] / 4)
    torch.testing.assert_close(soft["hessian_grad"], plain["hessian_grad"] / 16)


class Unused(nn.Module):
    """One of two layers has no part in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("make", [snip, grasp, synflow])
def test_what_the_loss_does_not_depend_on_goes_first(make) -> None:
    torch.manual_seed(0)
    batch = (torch.randn(8, 4), torch.randn(8, 4))
    masks = kept(make(sparsity=0.7), Unused(), [batch], squared_error)
    assert masks["used.weight"].sum() + masks["unused.weight"].sum() == 10
    if make is not grasp:  # its worst are those whose removal would help, which are among the used
        assert not masks["unused.weight"].any()
