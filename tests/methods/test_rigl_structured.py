"""RigL over channels, by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distsparse.core import Context, Signals, Sparsifier, Topology
from distsparse.core.moves import run
from distsparse.methods import rigl_structured
from distsparse.ops import counter_rng
from distsparse.ops.structure import Structure

WEIGHT = torch.tensor([[0.6, -0.7], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [2.0, 0.1]])
OPEN = torch.tensor([True, True, False, False, True])
"""L1 norms 1.3, 1 and 2.1; by the L2 norm (.92, 1) the first would be the smallest"""


def after(gradient: Tensor, *, seed: int = 0, **keywords: bool) -> list[int]:
    """Open rows after an update that drops one of three."""

    def signals(name: str, purpose: str) -> Signals:
        return Signals(WEIGHT, counter_rng.key(seed, 1, name, purpose), grad_abs=gradient.abs())

    topology = Topology({"w": OPEN[:, None].expand(5, 2).contiguous()}, {"w": 3})
    structure = Structure(tile=(1, -1))
    context = Context(topology, topology, {"w": (5, 2)}, signals, 0.0, 0.4, structure)
    found = run(rigl_structured(alpha=0.4, **keywords).update, context)
    assert found.targets == {"w": 3}
    assert torch.equal(found.masks["w"].any(1), found.masks["w"].all(1))
    return found.masks["w"].any(1).nonzero().flatten().tolist()


def test_the_least_l1_norm_goes_and_the_largest_gradient_norm_comes() -> None:
    # norms .5 and √.32 = .57; the larger entry and the larger sum are the fourth row's
    gradient = torch.tensor([[9.0, 9.0], [0.0, 0.0], [0.4, 0.4], [0.5, 0.0], [0.0, 0.0]])
    assert after(gradient) == [0, 2, 4]


def test_a_channel_just_dropped_comes_back_only_where_allowed() -> None:
    gradient = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert after(gradient) == [0, 3, 4]
    assert after(gradient, exclude_dropped=False) == [0, 1, 4]


def test_equal_gradients_are_ranked_at_random() -> None:
    chosen = [tuple(after(torch.zeros(5, 2), seed=seed)) for seed in range(20)]
    assert set(chosen) == {(0, 2, 4), (0, 3, 4)}
    assert chosen == [tuple(after(torch.zeros(5, 2), seed=seed)) for seed in range(20)]


def test_sparsity_counts_the_channels_of_all_layers_but_the_last() -> None:
    model = nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = rigl_structured(sparsity=0.75, delta_T=1)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=10, seed=0)
    sparsifier.initialize()
    assert sparsifier.topology.targets == {"0.weight": 3, "2.weight": 2, "4.weight": 3}
    for _step in range(8):
        model(torch.randn(4, 5)).square().sum().backward()
        sparsifier.step()
        optimizer.step()
        assert sparsifier.topology.masks["4.weight"].all()
    assert sparsifier.statistics.num_updates == 7


def test_smooth_activations_let_gradients_reach_inactive_channels_and_relu_does_not() -> None:
    def norms(activation: nn.Module) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), activation, nn.Linear(12, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = Sparsifier.attach(rigl_structured(), model, optimizer, total_steps=10, seed=0)
        sparsifier.initialize()
        model(torch.randn(4, 5)).square().sum().backward()
        assert model[0].weight.grad is not None
        return model[0].weight.grad[~sparsifier.topology.masks["0.weight"].any(1)].norm(dim=1)

    assert (norms(nn.GELU()) > 0).all()
    assert (norms(nn.ReLU()) == 0).all()
