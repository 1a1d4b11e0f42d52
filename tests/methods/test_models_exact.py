"""Counts are exact in every shipped model, for every method; masks only, with gradients drawn at random."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from distsparse.core import Sparsifier, Topology
from distsparse.methods import methods, names
from distsparse.models import build
from distsparse.ops.allocation import num_active

# The conformance suite has a run to take masks from, and takes runs through rounds.
ELSEWHERE = ("imp", "lottery")

MODELS = {
    "mlp": (1, 28, 28),
    "lenet5": (1, 28, 28),
    "resnet20": (3, 32, 32),
    "wrn-22-2": (3, 32, 32),
    "resnet18": (3, 32, 32),
}


def random_gradient_loss(model: nn.Module, seed: int) -> Tensor:
    """A loss whose gradient in each parameter is a random number, without a forward pass."""
    generator = torch.Generator().manual_seed(seed)
    return sum((p * torch.randn(p.shape, generator=generator)).sum() for p in model.parameters())


def real_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def flow_through(model: nn.Module, input_shape: tuple[int, ...]) -> float:
    """The sum of the outputs for an input of ones and absolute weights."""
    absolute = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for parameter in absolute.parameters():
            parameter.abs_()
        return float(absolute(torch.ones(1, *input_shape, dtype=torch.float64)).sum())


def check_fan_in(topology: Topology, expected: int) -> None:
    """Fan-ins are whole weights: a layer is within half a weight per open row of what it was given."""
    assert sum(topology.requested.values()) == expected
    for name, mask in topology.masks.items():
        fan_in = mask.sum(1)
        open_ = fan_in > 0
        assert len(fan_in[open_].unique()) == 1
        assert topology.targets[name] == int(mask.sum())
        least_or_full = int(fan_in.max()) in (1, mask.shape[1])
        off = abs(topology.targets[name] - topology.requested[name])
        assert off <= int(open_.sum()) / 2 or least_or_full
    assert open_.all(), "the last layer keeps all its neurons"


@pytest.mark.parametrize("sparsity", [0.5, 0.99])
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", [name for name in names() if name not in ELSEWHERE])
def test_counts_are_exact(name: str, model_name: str, sparsity: float) -> None:
    entry = methods.get(name)
    fast = {"sparsity": sparsity, "delta_T": 1, "rounds": 2}
    method = entry.factory(**{key: value for key, value in fast.items() if key in entry.schema.model_fields})
    torch.manual_seed(0)
    model = build(model_name, MODELS[model_name], 10, {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=4, seed=0)
    if method.init_needs & {"hessian_grad", "flow"}:  # a linear loss has no Hessian, a flow needs a pass
        batch = torch.randn(2, *MODELS[model_name]), torch.tensor([3, 7])
        events = [sparsifier.initialize([batch], real_loss)]
    else:
        events = [sparsifier.initialize([0], random_gradient_loss)]
    topologies = [sparsifier.topology]
    # Step 0 is no update step, 1 is.
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        for weight in sparsifier.weights.values():
            weight.parameter.grad = torch.randn(weight.parameter.shape, generator=generator)
        if event := sparsifier.step():
            events.append(event)
            topologies.append(sparsifier.topology)
    assert [event.step for event in events] == ([0, 1] if method.update else [0])
    assert sparsifier.topology.num_weights == sum(
        module.weight.numel() for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    )
    for event, topology in zip(events, topologies, strict=True):
        at_start = method.sparsity(0.0) if method.init else 0.0
        wanted = method.sparsity_at(event.step, 4) if event.step else at_start
        expected = num_active(sparsifier.topology.num_weights, wanted)
        if method.structure.tile == (1, -1):
            # whole channels, without those of the last layer, which all stay
            rows = [mask.any(1) for mask in list(topology.masks.values())[:-1]]
            total = sum(row.numel() for row in rows)
            assert sum(int(row.sum()) for row in rows) == num_active(total, method.sparsity(0.0))
        elif method.structure.group == "layer":
            assert sum(layer.nnz for layer in event.layers) == expected
        else:
            check_fan_in(topology, expected)
        # Synaptic flow may close one of two parallel branches, but never cuts the network.
        # Of whole channels, 1 % may be fewer than there are layers.
        reachable = "flow" not in method.init_needs or model_name in ("mlp", "lenet5")
        if reachable and sum(topology.targets.values()) >= 2 * len(topology.targets):
            assert all(layer.nnz > 0 for layer in event.layers)
    if "flow" in method.init_needs and sparsity < 0.9:  # two rounds are too few for 0.99
        assert flow_through(model, MODELS[model_name]) > 0
    for layer in events[-1].layers:
        assert int(sparsifier.topology.masks[layer.name].sum()) == layer.nnz
        weight = sparsifier.weights[layer.name]
        assert int((weight.matrix(weight.parameter.detach()) != 0).sum()) <= layer.nnz
