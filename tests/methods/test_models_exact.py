"""Counts are exact in every shipped model, for every method; masks only, with gradients drawn at random."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distsparse.core import Sparsifier
from distsparse.methods import methods, names
from distsparse.models import build
from distsparse.ops.allocation import num_active

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


@pytest.mark.parametrize("sparsity", [0.5, 0.99])
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", names())
def test_counts_are_exact(name: str, model_name: str, sparsity: float) -> None:
    entry = methods.get(name)
    fast = {"sparsity": sparsity, "delta_T": 1}
    method = entry.factory(**{key: value for key, value in fast.items() if key in entry.schema.model_fields})
    torch.manual_seed(0)
    model = build(model_name, MODELS[model_name], 10, {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=4, seed=0)
    events = [sparsifier.initialize([0], random_gradient_loss)]
    # Step 0 is no update step, 1 is.
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        for weight in sparsifier.weights.values():
            weight.parameter.grad = torch.randn(weight.parameter.shape, generator=generator)
        events += [event for event in [sparsifier.step()] if event]
    assert [event.step for event in events] == ([0, 1] if method.update else [0])
    assert sparsifier.topology.num_weights == sum(
        module.weight.numel() for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    )
    for event in events:
        expected = num_active(
            sparsifier.topology.num_weights, method.sparsity(method.progress(event.step, 4))
        )
        assert sum(layer.nnz for layer in event.layers) == expected
        assert all(layer.nnz > 0 for layer in event.layers)
    for layer in events[-1].layers:
        assert int(sparsifier.topology.masks[layer.name].sum()) == layer.nnz
        weight = sparsifier.weights[layer.name]
        assert int((weight.matrix(weight.parameter.detach()) != 0).sum()) <= layer.nnz
