"""What follows a layer's channels, and that an inactive channel is exactly zero."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distsparse.core import Sparsifier
from distsparse.core.channels import Follower, channels_of, companions, output_layers
from distsparse.core.weights import find_weights
from distsparse.methods import rigl_structured, srigl
from distsparse.models.resnet import BasicBlock, resnet20


def lenet() -> nn.Module:
    """Inputs of 2 × 8 × 8 pixels."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(2, 6, 3, padding=1),
            bn1=nn.BatchNorm2d(6),
            relu1=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 8, 3),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(32, 12),
            bn2=nn.BatchNorm1d(12),
            relu3=nn.ReLU(),
            dropout=nn.Dropout(0.3),
            fc2=nn.Linear(12, 4),
        )
    )


def test_convolutions_norms_and_the_flattened_linear_layer() -> None:
    found = channels_of(lenet())
    assert found["conv1"].norms == (Follower("bn1"),)
    assert found["conv1"].readers == (Follower("conv2"),)
    assert found["conv2"].norms == ()
    assert found["conv2"].readers == (Follower("fc1", repeat=4),)  # 2 × 2 pixels of each channel
    assert (found["fc1"].norms, found["fc1"].readers) == ((Follower("bn2"),), (Follower("fc2"),))
    assert [name for name, channels in found.items() if channels.obstacle] == ["fc2"]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.adaptive_avg_pool2d(self.conv2(x).relu(), 1)
        return self.last(torch.tanh(self.fc(F.dropout(torch.flatten(x, 1), training=self.training))))


def test_functions_and_methods() -> None:
    found = channels_of(Functional())
    assert [found[name].readers for name in ("conv1", "conv2", "fc")] == [
        (Follower("conv2"),),
        (Follower("fc"),),
        (Follower("last"),),
    ]
    assert [name for name, channels in found.items() if channels.obstacle] == ["last"]


def test_inner_channels_of_a_residual_network() -> None:
    found = channels_of(resnet20((3, 32, 32), 10))
    removable = [name for name, channels in found.items() if channels.obstacle is None]
    assert removable == [f"stage{s}.{b}.conv1" for s in (1, 2, 3) for b in (0, 1, 2)]
    outer = found["stage1.0.conv2"]
    assert outer.norms == (Follower("stage1.0.bn2"),)
    assert outer.obstacle is not None
    assert "add" in outer.obstacle


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.sigmoid(self.b(self.a(self.a(x)))))


@pytest.mark.parametrize(
    ("model", "layer", "obstacle"),
    [
        (Twice(), "a", "more than once"),
        (Twice(), "b", "sigmoid"),  # σ(0) is not 0
        (nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2)), "0", "meet 1"),
        (nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.Conv2d(4, 4, 1)), "0", "grouped"),
        (nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)), "0", "meet 1"),
        (nn.Sequential(nn.Conv2d(2, 4, 1), nn.Linear(4, 4)), "0", "meet 1"),  # along the width
        (nn.Sequential(nn.Linear(2, 4), nn.Flatten(), nn.Linear(12, 4)), "0", "another number"),
    ],
)
def test_what_cannot_be_removed(model: nn.Module, layer: str, obstacle: str) -> None:
    found = channels_of(model)[layer].obstacle
    assert found is not None
    assert obstacle in found


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.sum() > 0 else x


def test_a_model_that_cannot_be_traced_has_its_biases_only() -> None:
    model = Branching()
    with pytest.raises(ValueError, match=r"model Branching cannot be traced by torch\.fx.*control flow"):
        channels_of(model)
    (found,) = companions(model, find_weights(model)).values()
    assert [(companion.owner, companion.attribute) for companion in found] == [(model.conv, "bias")]


def small_residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        BasicBlock(6, 8, 1, "B"),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.BatchNorm1d(32),
        nn.Linear(32, 4),
    )


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("build", [lenet, small_residual])
def test_an_inactive_channel_is_exactly_zero_in_training_and_evaluation(build, optimizer: str) -> None:
    torch.manual_seed(0)
    model = build()
    inner = OPTIMIZERS[optimizer](model.parameters())
    method = rigl_structured(sparsity=0.5, delta_T=3, alpha=0.6, alpha_schedule="constant")
    sparsifier = Sparsifier.attach(method, model, inner, total_steps=20, seed=0)
    sparsifier.initialize()
    modules = dict(model.named_modules())
    outputs: dict[str, Tensor] = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda m, args, out, name=name: outputs.__setitem__(name, out))
    of_layer = {
        name.removesuffix(".weight"): (name, channels)
        for name, channels in companions(model, list(sparsifier.weights.values())).items()
    }
    num_zero = num_others = num_changes = 0
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        inner.zero_grad()
        nn.functional.cross_entropy(
            model(3 + torch.randn(8, 2, 8, 8, generator=generator)),
            torch.randint(4, (8,), generator=generator),
        ).backward()
        event = sparsifier.step()
        num_changes += event.num_grown > 0 if event else 0
        inner.step()
        for training in (True, False):
            model.train(training)(3 + torch.randn(8, 2, 8, 8, generator=generator))
            for weight, found in of_layer.values():
                closed = ~sparsifier.topology.masks[weight].any(1)
                for companion in found:
                    tensor = companion.tensor
                    rows = closed.repeat_interleave(companion.repeat)
                    values = [tensor, tensor.grad, *inner.state.get(tensor, {}).values()]
                    for value in values:
                        if torch.is_tensor(value) and value.shape == tensor.shape:
                            assert (value[rows] == 0).all()
                            num_zero += int(rows.sum())
                            num_others += int((value[~rows] != 0).sum())
                    (owner,) = (name for name, module in modules.items() if module is companion.owner)
                    if isinstance(outputs[owner], Tensor) and companion.attribute == "running_mean":
                        assert (outputs[owner].transpose(0, 1)[rows] == 0).all()
        model.train()
    assert min(num_zero, num_others) > 1000
    assert num_changes >= 4
    assert all((m.weight != 0).all() for m in modules.values() if isinstance(m, nn.BatchNorm2d))


def test_the_norm_behind_the_flattening_has_entries_for_every_pixel() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2))
    (first, _) = companions(model, find_weights(model)).values()
    assert [(c.attribute, c.repeat) for c in first] == [("bias", 1), ("bias", 4), ("running_mean", 4)]
    mask = torch.tensor([[True], [False], [True]])
    assert first[1].closed(~mask.any(1)).nonzero().flatten().tolist() == [4, 5, 6, 7]


class HeadFirst(nn.Module):
    """Its output layer is declared before the others."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.inner = nn.Linear(12, 4), nn.Linear(6, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.inner(F.relu(self.body(x)))))


class TwoHeads(HeadFirst):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.body(x))
        return torch.log_softmax(self.head(hidden), 1), self.other(self.inner(hidden) + hidden)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(6, 8), nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.attention(x, x, x)[0]


class OwnHead(HeadFirst):
    """Its last product is not a module's."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(super().forward(x), self.matrix)


@pytest.mark.parametrize(
    ("model", "outputs"),
    [
        (HeadFirst(), {"head.weight"}),
        (TwoHeads(), {"head.weight", "other.weight"}),
        (Attending(), {"attention.out_proj.weight"}),
        (OwnHead(), set()),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), {"2.weight"}),
        (resnet20((1, 8, 8), 10), {"classifier.2.weight"}),
        (Branching(), {"conv.weight"}),  # cannot be traced: the last one
    ],
)
def test_output_layers(model: nn.Module, outputs: set[str]) -> None:
    assert output_layers(model, find_weights(model)) == outputs


def test_an_output_layer_that_is_not_sparsified_protects_no_other() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    assert output_layers(model, find_weights(model, exclude=["2.*"])) == set()
    branching = Branching()  # cannot be traced
    branching.late = nn.Linear(2, 2)
    assert output_layers(branching, find_weights(branching, exclude=["late.*"])) == set()


@pytest.mark.parametrize("exclude", [(), ("head.*",)])
def test_outputs_keep_all_their_rows_wherever_they_are_declared(exclude: tuple[str, ...]) -> None:
    for method in (rigl_structured(sparsity=0.5, delta_T=1), srigl(sparsity=0.6, gamma=0.6, delta_T=1)):
        torch.manual_seed(0)
        model = HeadFirst()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=9, seed=0, exclude=exclude)
        sparsifier.initialize()
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(16, 6)).square().mean().backward()
            sparsifier.step()
        rows = {name: mask.any(1) for name, mask in sparsifier.topology.masks.items()}
        assert rows.pop("head.weight", torch.ones(1)).all()
        assert sorted(rows) == ["body.weight", "inner.weight"]
        assert not all(open_.all() for open_ in rows.values())
