"""A smaller model with the same outputs; parameters counted by hand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, fx, nn

from distsparse.core import Sparsifier
from distsparse.core.channels import companions
from distsparse.core.weights import find_weights
from distsparse.export import shrink
from distsparse.methods import rigl_structured, srigl
from distsparse.models.mlp import mlp
from distsparse.models.resnet import resnet20


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def close(model: nn.Module, rows: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Make rows of layers inactive, with their companions; return the masks."""
    weights = find_weights(model)
    found = companions(model, weights)
    masks = {}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):  # a trained norm is no identity
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5)
        for weight in weights:
            mask = torch.ones_like(weight.matrix(weight.parameter), dtype=torch.bool)
            mask[rows.get(weight.name, [])] = False
            weight.parameter.mul_(weight.unmatrix(mask))
            masks[weight.name] = mask
            for companion in found.get(weight.name, ()):
                companion.tensor[companion.closed(~mask.any(1))] = 0
    return masks


def assert_same(model: nn.Module, small: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    training = model.training
    with torch.no_grad():
        expected, found = model.eval()(inputs), small(inputs)
    model.train(training)
    assert not small.training
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(found, expected)


def test_mlp() -> None:
    torch.manual_seed(0)
    model = mlp((20,), 3, hidden=(10, 8))
    masks = close(model, {"1.weight": [0, 4, 9], "3.weight": [1, 2]})
    before = num_parameters(model)
    small = shrink(model, masks)
    assert_same(model, small, (20,))
    # 20 → 7 → 6 → 3 with biases
    assert num_parameters(small) == 20 * 7 + 7 + 7 * 6 + 6 + 6 * 3 + 3
    assert (small[1].out_features, small[3].in_features, small[3].out_features) == (7, 7, 6)
    assert num_parameters(model) == before == 20 * 10 + 10 + 10 * 8 + 8 + 8 * 3 + 3


def lenet() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(2, 6, 3, padding=1),
            bn1=nn.BatchNorm2d(6),
            relu1=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 8, 3),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            bn2=nn.BatchNorm1d(32),
            fc1=nn.Linear(32, 12),
            relu3=nn.ReLU(),
            fc2=nn.Linear(12, 4),
        )
    )


def test_convolutions_with_norms_and_a_flattening() -> None:
    torch.manual_seed(0)
    model = lenet()
    masks = close(model, {"conv1.weight": [1, 5], "conv2.weight": [0, 3, 4], "fc1.weight": [11]})
    small = shrink(model, masks)
    assert_same(model, small, (2, 8, 8))
    # 4 and 5 channels with 3 × 3 kernels; 2 × 2 pixels of each of the 5; 11 and 4 neurons
    expected = 4 * (2 * 9 + 1) + 2 * 4 + 5 * (4 * 9 + 1) + 2 * 20 + 11 * (20 + 1) + 4 * (11 + 1)
    assert num_parameters(small) == expected
    assert (small.bn1.num_features, small.bn2.num_features, len(small.bn2.running_var)) == (4, 20, 20)


def test_inner_channels_of_resnet20() -> None:
    torch.manual_seed(0)
    model = resnet20((3, 8, 8), 10)
    # The stem and the second convolution feed the residual stream, and stay.
    rows = {
        "stage1.1.conv1.weight": [0, 1, 15],
        "stage3.0.conv1.weight": list(range(40)),
        "stem.conv.weight": [3],
        "stage2.2.conv2.weight": [5, 6],
    }
    masks = close(model, rows)
    small = shrink(model, masks)
    assert_same(model, small, (3, 8, 8))
    # each channel: 3 × 3 weights of all inputs, scale and shift, 3 × 3 weights of all outputs
    removed = 3 * (16 * 9 + 2 + 16 * 9) + 40 * (32 * 9 + 2 + 64 * 9)
    assert num_parameters(model) - num_parameters(small) == removed
    assert type(small) is type(model)


def test_a_layer_whose_every_row_is_gone_keeps_one_zero_channel() -> None:
    torch.manual_seed(0)
    model = mlp((20,), 3, hidden=(10, 8))
    masks = close(model, {"1.weight": list(range(10))})
    small = shrink(model, masks)
    with torch.no_grad():
        torch.testing.assert_close(small(torch.randn(5, 20)), model(torch.randn(5, 20)))
    assert small[1].out_features == 1
    assert (small[1].weight == 0).all()


def test_a_residual_branch_that_is_zero_is_removed_as_a_whole() -> None:
    torch.manual_seed(0)
    model = resnet20((3, 8, 8), 10)
    masks = close(model, {"stage2.1.conv2.weight": list(range(32))})
    small = shrink(model, masks)
    assert isinstance(small, fx.GraphModule)
    assert_same(model, small, (3, 8, 8))
    # two convolutions of 32 channels, and two norms
    assert num_parameters(model) - num_parameters(small) == 2 * 32 * 32 * 9 + 2 * 2 * 32
    names = {name for name, _ in small.named_parameters()}
    assert not any(name.startswith("stage2.1.") for name in names)
    assert names < {name for name, _ in model.named_parameters()}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bn = nn.Linear(4, 6), nn.Linear(6, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(self.second(self.first(x).relu()))


@pytest.mark.parametrize("tensor", ["second.bias", "bn.bias", "bn.running_mean", None])
def test_a_residual_branch_with_a_constant_is_kept(tensor: str | None) -> None:
    torch.manual_seed(0)
    model = Residual()
    masks = close(model, {"second.weight": [0, 1, 2, 3]})
    if tensor:
        model.state_dict()[tensor][2] = 0.5
    small = shrink(model, masks)
    assert_same(model, small, (4,))
    assert (num_parameters(small) == 0) == (tensor is None)


def test_a_constant_channel_is_not_removed() -> None:
    torch.manual_seed(0)
    model = lenet()
    masks = close(model, {"conv1.weight": [1, 5], "fc1.weight": [2, 3]})
    with torch.no_grad():
        model.bn1.running_mean[1] = 0.1
        model.fc1.bias[2] = 0.5
    small = shrink(model, masks)
    assert_same(model, small, (2, 8, 8))
    assert (small.conv1.out_channels, small.fc1.out_features) == (5, 11)


@pytest.mark.parametrize("method", [rigl_structured(delta_T=4, alpha=0.6), srigl(delta_T=4, gamma=0.9)])
def test_a_trained_network(method) -> None:
    torch.manual_seed(0)
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=30, seed=0)
    sparsifier.initialize()
    for _step in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(8, 2, 8, 8) + 1), torch.randint(4, (8,))).backward()
        sparsifier.step()
        optimizer.step()
    small = shrink(model, sparsifier.topology.masks)
    assert_same(model, small, (2, 8, 8))
    channels = [int(mask.any(1).sum()) for mask in sparsifier.topology.masks.values()]
    if method.structure.tile == (1, -1):
        assert [len(weight.parameter) for weight in find_weights(small)] == channels
        assert sum(channels[:-1]) == 13  # half of 6 + 8 + 12
    assert num_parameters(model) == num_parameters(lenet())


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.attention(x, x, x, need_weights=False)[0]).relu())


def test_attention_keeps_its_rows() -> None:
    torch.manual_seed(0)
    model = Attending()
    masks = close(model, {"attention.in_proj_weight": [0, 5], "first.weight": [1, 2, 3]})
    small = shrink(model, masks)
    assert_same(model, small, (3, 4))
    assert num_parameters(model) - num_parameters(small) == 3 * (4 + 1 + 2)


def test_masks_that_do_not_fit() -> None:
    model = mlp((20,), 3, hidden=(10,))
    masks = close(model, {})
    with pytest.raises(ValueError, match=r"masks: '9\.weight' is no weight of the model"):
        shrink(model, {"9.weight": masks["1.weight"]})
    with pytest.raises(ValueError, match=r"'1\.weight' has shape \(20, 10\), its weight \(10, 20\)"):
        shrink(model, {"1.weight": masks["1.weight"].t()})
    with pytest.raises(ValueError, match=r"'1\.weight' has inactive weights that are not zero"):
        shrink(model, {"1.weight": ~masks["1.weight"]})
