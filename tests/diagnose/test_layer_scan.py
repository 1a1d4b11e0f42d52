"""The layer sensitivity scan by hand, and that it leaves everything as it was."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from distsparse.core import Sparsifier
from distsparse.diagnose import curves, layer_scan
from distsparse.methods import gmp, rigl, static
from distsparse.ops.curves import curve_sparsities


class TwoRanks:
    """The second of two ranks has seen other sums."""

    rank, world_size = 0, 2

    def __init__(self, other: list[float]) -> None:
        self.other = torch.tensor(other, dtype=torch.float64)

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor + self.other

    def gather(self, tensor: Tensor) -> list[Tensor]:
        raise AssertionError


def chain(*rows: list[float]) -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(len(row), 1, bias=False) for row in rows))
    for layer, row in zip(model, rows, strict=True):
        layer.weight.data = torch.tensor([row])
    return model


def output(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).sum()


def test_by_hand() -> None:
    # y = 2 (1 x₁ - 3 x₂ + 2 x₃ + 0.5 x₄); each layer keeps its largest.
    model = chain([1.0, -3.0, 2.0, 0.5], [2.0])
    batch, sparsities = torch.tensor([[8.0, 1.0, 1.0, 1.0]]), (0.0, 0.25, 0.5, 0.75)
    rows = layer_scan(model, [batch], output, sparsities=sparsities, exclude=("1.*",))
    # 2 (8 - 3 + 2 + .5) = 15; without .5: 14; without 1 as well: -2; -3 alone: -6.
    assert [(row.layer, row.sparsity, row.num_weights, row.num_active) for row in rows] == [
        ("0.weight", s, 4, active) for s, active in [(0.0, 4), (0.25, 3), (0.5, 2), (0.75, 1)]
    ]
    assert [row.loss for row in rows] == [15, 14, -2, -6]
    assert [row.loss_increase for row in rows] == [0, -1, -17, -21]
    table = pd.DataFrame(rows)
    assert list(table) == ["layer", "sparsity", "num_weights", "num_active", "loss", "loss_increase"]
    assert curves(rows) == {"0.weight": [(0.0, 0.0), (0.25, -1.0), (0.5, -17.0), (0.75, -21.0)]}


def test_a_layer_keeps_a_weight_and_every_layer_is_pruned_alone() -> None:
    model = chain([1.0, 2.0], [3.0])
    rows = layer_scan(model, [torch.ones(1, 2)], output, sparsities=(0.5, 0.99))
    # 3 (1 + 2) = 9; 3 · 2; the only weight of the other layer stays.
    assert [(row.layer, row.num_active, row.loss) for row in rows] == [
        ("0.weight", 1, 6),
        ("0.weight", 1, 6),
        ("1.weight", 1, 9),
        ("1.weight", 1, 9),
    ]


def test_losses_are_means_over_the_batches_of_all_ranks() -> None:
    model = chain([1.0, 2.0])
    batches = [torch.ones(1, 2), 3 * torch.ones(1, 2)]
    (row,) = layer_scan(model, batches, output, sparsities=(0.5,))
    assert (row.loss, row.loss_increase) == ((2 + 6) / 2, (2 + 6 - 3 - 9) / 2)
    # The other rank: 3 batches, summed losses 8 and 1.
    (row,) = layer_scan(model, batches, output, sparsities=(0.5,), comm=TwoRanks([3, 8, 1]))
    assert (row.loss, row.loss_increase) == (9 / 5, (9 - 20) / 5)
    with pytest.raises(ValueError, match="batches is empty"):
        layer_scan(model, [], output)


class Everything(nn.Module):
    """Batch statistics, dropout, and a normalisation that stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = nn.BatchNorm1d(64).eval()
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(64, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.dropout(self.frozen(self.norm(self.conv(inputs)).flatten(1))))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("training", [False, True])
def test_everything_is_left_as_found_and_a_second_scan_finds_the_same(training: bool) -> None:
    torch.manual_seed(0)
    model = Everything()
    batch = torch.randn(8, 1, 6, 6), torch.arange(8) % 3
    cross_entropy(model, batch).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    first = layer_scan(model, [batch], cross_entropy, training=training)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [module.training for module in model.modules()] == [True, True, True, False, True, True]
    torch.manual_seed(123)
    assert layer_scan(model, [batch], cross_entropy, training=training) == first
    assert [row.loss_increase for row in first if row.sparsity == 0] == [0, 0]
    assert max(abs(row.loss_increase) for row in first) > 1e-3
    model.train(training)
    base = first[0].loss
    torch.manual_seed(0)
    assert float(cross_entropy(model, batch).detach()) == pytest.approx(base)


def test_an_error_in_the_loss_leaves_the_weights_as_found() -> None:
    model = chain([1.0, 2.0])

    def failing(model: nn.Module, batch: Tensor) -> Tensor:
        if bool((model[0].weight == 0).any()):
            raise ArithmeticError("planted")
        return output(model, batch)

    with pytest.raises(ArithmeticError, match="planted"):
        layer_scan(model, [torch.ones(1, 2)], failing, sparsities=(0.5,))
    assert model[0].weight.tolist() == [[1, 2]]


@pytest.mark.parametrize("sparsities", [(0.5, 0.5), (0.5, 0.1), (0.5, 1.0), (-0.1, 0.5), (float("nan"),)])
def test_sparsities_rise(sparsities: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"must rise, from 0 at least to less than 1"):
        layer_scan(chain([1.0]), [torch.ones(1, 1)], output, sparsities=sparsities)


@pytest.mark.parametrize("factory", [static, rigl])
def test_the_allocation_is_that_of_the_scan(factory) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3))
    batches = [(torch.randn(16, 12), torch.arange(16) % 3) for _ in range(2)]
    expected = curve_sparsities(
        curves(layer_scan(model, batches, cross_entropy, training=True)),
        {name: value.shape for name, value in model.named_parameters() if value.ndim == 2},
        sparsity=0.8,
    )
    assert len(set(expected.values())) > 1
    method = factory(sparsity=0.8, allocation="layer_scan")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=1000, seed=0)
    event = sparsifier.initialize(batches, cross_entropy)
    assert {layer.name: 1 - layer.nnz / layer.num_weights for layer in event.layers} == expected


def test_an_update_that_reads_it_is_refused() -> None:
    method = gmp()
    scanning = static(allocation="layer_scan")
    broken = type(method)(sparsity=method.sparsity, update=scanning.init)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"prune\(random, layer_scan\) reads loss_curve, which only a first topology has"
    ):
        Sparsifier.attach(broken, model, optimizer, total_steps=1000, seed=0)
