from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from distsparse.models import build, models
from distsparse.models.resnet import PaddedShortcut


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "input_shape", "params", "expected"),
    [
        # (784 + 1) 300 + (300 + 1) 100 + (100 + 1) 10
        ("mlp", (1, 28, 28), {}, 266_610),
        ("mlp", (1, 28, 28), {"hidden": []}, 7_850),
        # 20 (25 + 1) + 50 (20 · 25 + 1) + 500 (50 · 4 · 4 + 1) + 10 (500 + 1)
        ("lenet5", (1, 28, 28), {}, 431_080),
        # 20 (75 + 1) + 50 (500 + 1) + 500 (50 · 5 · 5 + 1) + 5010
        ("lenet5", (3, 32, 32), {}, 657_080),
        # 520 + 25050 + 500 (50 · 2 · 2 + 1) + 5010
        ("lenet5", (1, 8, 8), {"padding": 2}, 131_080),
        # He et al., 2016: 0.27 M. 464 + (13824 + 192) + (50688 + 384) + (202752 + 768) + 650
        ("resnet20", (3, 32, 32), {}, 269_722),
        # two projections with normalisation: 16 · 32 + 64, 32 · 64 + 128
        ("resnet20", (3, 32, 32), {"shortcut": "B"}, 269_722 + 576 + 2_176),
        ("resnet18", (3, 32, 32), {}, 11_173_962),
        ("resnet18", (1, 28, 28), {}, 11_173_962 - 2 * 64 * 9),
        # 432 + (14432 + 2 · 18560) + (57536 + 2 · 73984) + (229760 + 2 · 295424) + 256 + 1290
        ("wrn-22-2", (3, 32, 32), {}, 1_079_642),
    ],
)
def test_number_of_parameters(
    name: str, input_shape: tuple[int, int, int], params: dict, expected: int
) -> None:
    model = build(name, input_shape, 10, params)
    assert num_parameters(model) == expected


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("input_shape", [(1, 28, 28), (3, 32, 32), (1, 17, 20)])
def test_every_model_maps_images_to_logits(name: str, input_shape: tuple[int, int, int]) -> None:
    model = build(name, input_shape, 7, {"width": 0.25})
    logits = model(torch.randn(2, *input_shape))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", models.names())
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build(name, (1, 16, 16), 3, {"width": 0.25}).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("name", models.names())
def test_every_keyword_is_described_and_changes_the_model(name: str) -> None:
    entry = models.get(name)
    other = {"hidden": (7,), "width": 0.5, "padding": 1, "shortcut": "B", "dropout": 0.5}
    plain = repr(build(name, (1, 20, 20), 3, {}))
    for key, field in entry.schema.model_fields.items():
        assert field.description
        assert repr(build(name, (1, 20, 20), 3, {key: other[key]})) != plain


def test_he_initialization() -> None:
    model = build("mlp", (1, 28, 28), 10, {"hidden": (2000,)})
    first, last = (module for module in model if isinstance(module, nn.Linear))
    assert first.weight.std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.01)
    assert last.weight.std().item() == pytest.approx((2 / 2000) ** 0.5, rel=0.05)
    assert not first.bias.any()


def test_he_initialization_of_a_convolution_counts_its_inputs() -> None:
    conv = build("lenet5", (1, 28, 28), 10, {"width": 2.0}).conv2
    assert conv.weight.std().item() == pytest.approx((2 / (40 * 25)) ** 0.5, rel=0.02)


def test_padded_shortcut_by_hand() -> None:
    x = torch.arange(2 * 3 * 3, dtype=torch.float32).reshape(1, 2, 3, 3)
    y = PaddedShortcut(3, stride=2)(x)
    assert y.shape == (1, 5, 2, 2)
    assert y[0, 1].tolist() == [[0, 2], [6, 8]]
    assert y[0, 2].tolist() == [[9, 11], [15, 17]]
    assert not y[0, [0, 3, 4]].any()


def test_resnet_halves_the_image_at_each_later_stage() -> None:
    model = build("resnet18", (1, 32, 32), 10, {"width": 0.1})
    x = model.stem(torch.randn(1, 1, 32, 32))
    sizes = [x.shape[-1]]
    for stage in (model.stage1, model.stage2, model.stage3, model.stage4):
        x = stage(x)
        sizes.append(x.shape[-1])
    assert sizes == [32, 32, 16, 8, 4]


def test_block_adds_the_shortcut_before_the_last_relu() -> None:
    block = build("resnet20", (1, 8, 8), 2, {}).stage1[0].eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x.relu())


def test_wide_block_is_the_identity_when_its_last_convolution_is_zero() -> None:
    block = build("wrn-22-2", (1, 8, 8), 2, {}).stage1[1].eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 32, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("mlp", "Flatten Linear ReLU Linear ReLU Linear"),
        (
            "lenet5",
            "Conv2d ReLU MaxPool2d Conv2d ReLU MaxPool2d Flatten Linear ReLU Linear",
        ),
    ],
)
def test_order_of_layers(name: str, kinds: str) -> None:
    assert [type(layer).__name__ for layer in build(name, (1, 28, 28), 10, {})] == kinds.split()


def test_width_scales_every_hidden_layer() -> None:
    model = build("mlp", (1, 4, 4), 10, {"width": 0.1})
    assert [m.out_features for m in model if isinstance(m, nn.Linear)] == [30, 10, 10]


@pytest.mark.parametrize(
    ("name", "input_shape", "params", "message"),
    [
        (
            "lenet5",
            (1, 8, 8),
            {},
            "needs at least 16 pixels in height and width; allowed: .* model.padding = 2",
        ),
        ("lenet5", (1, 9, 28), {"padding": 1}, "needs at least 10 pixels"),
        ("resnet20", (64,), {}, "needs (channels, height, width)"),
        ("mlp", (1, 8, 8), {"hidden": [10, 0]}, "model.hidden"),
        ("resnet18", (1, 8, 8), {"width": 0}, "model.width = 0: input should be greater than 0"),
        ("resnet20", (1, 8, 8), {"shortcut": "C"}, "model.shortcut = 'C'"),
        ("wrn-22-2", (1, 8, 8), {"drop_out": 0.3}, "unknown key 'model.drop_out' (did you mean 'dropout'?)"),
        ("resnet22", (1, 8, 8), {}, "unknown model 'resnet22' (did you mean 'resnet20'?)"),
    ],
)
def test_refuses(name: str, input_shape: tuple[int, ...], params: dict, message: str) -> None:
    pattern = message if ".*" in message else re.escape(message)
    with pytest.raises(ValueError, match=pattern):
        build(name, input_shape, 10, params)


@pytest.mark.parametrize(("pixels", "padding"), [(16, 0), (10, 1), (4, 2)])
def test_the_smallest_image_of_lenet5(pixels: int, padding: int) -> None:
    model = build("lenet5", (1, pixels, pixels), 3, {"padding": padding})
    assert model(torch.zeros(1, 1, pixels, pixels)).shape == (1, 3)
    with pytest.raises(ValueError, match=f"at least {pixels} pixels"):
        build("lenet5", (1, pixels - 1, pixels), 3, {"padding": padding})


def test_a_custom_factory_must_return_a_module() -> None:
    assert isinstance(build("tests_models_custom:good", (1, 2, 2), 3, {"units": 4}), nn.Module)
    with pytest.raises(
        ValueError, match=r"'tests_models_custom:bad' returned dict; it must return a torch\.nn\.Module"
    ):
        build("tests_models_custom:bad", (1, 2, 2), 3, {})


@pytest.fixture(autouse=True)
def _custom_module(tmp_path, monkeypatch) -> None:
    source = (
        "from torch import nn\n"
        "def good(input_shape, num_classes, *, units: int = 2):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(4, units), nn.Linear(units, num_classes))\n"
        "def bad(input_shape, num_classes):\n"
        "    return {}\n"
    )
    (tmp_path / "tests_models_custom.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
