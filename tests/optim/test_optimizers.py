from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from distsparse.optim import build_optimizer, optimizers

NAMES = optimizers.names()
CLASSES = {cls.lower(): cls for cls in torch.optim.__all__}
OTHER = {  # for each keyword, a value that is not the default of any optimizer
    "lr": 0.037, "momentum": 0.5, "weight_decay": 0.3, "nesterov": True, "betas": (0.6, 0.7), "eps": 0.03,
    "amsgrad": True, "maximize": True, "rho": 0.5, "lr_decay": 0.4, "initial_accumulator_value": 0.5,
    "lambd": 0.1, "alpha": 0.3, "t0": 1.0, "momentum_decay": 0.5, "decoupled_weight_decay": True,
    "centered": True, "etas": (0.4, 1.6), "step_sizes": (0.02, 0.03), "beta2_decay": -0.3, "d": 3.0,
}  # fmt: skip


def train(name: str, config: dict, steps: int = 12) -> torch.Tensor:
    """Follow a fixed sequence of gradients, of rising and falling size; return weights and ASGD average."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    optimizer = build_optimizer(name, [weight], config)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        weight.grad = torch.randn(2, 2, generator=generator) * (1 + step % 4)
        optimizer.step()
    return torch.stack([weight.detach(), optimizer.state[weight].get("ax", weight.detach())])


def test_names() -> None:
    expected = "adadelta adafactor adagrad adam adamax adamw asgd nadam radam rmsprop rprop sgd"
    assert set(expected.split()) <= set(NAMES)
    assert not {"lbfgs", "sparseadam", "muon", "optimizer"} & set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_the_class(name: str) -> None:
    cls = getattr(torch.optim, CLASSES[name])
    weight = nn.Parameter(torch.zeros(2, 2))
    ours, theirs = build_optimizer(name, [weight], {}), cls([weight])
    assert type(ours) is cls
    changed = {key for key, value in ours.defaults.items() if value != theirs.defaults[key]}
    assert changed == ({"lr", "momentum"} if name == "sgd" else set())


@pytest.mark.parametrize("name", NAMES)
def test_every_keyword_is_described_and_changes_the_weights(name: str) -> None:
    plain = train(name, {})
    assert torch.isfinite(plain).all()
    for key, field in optimizers.get(name).schema.model_fields.items():
        assert field.description
        needed = {"decoupled_weight_decay": {"weight_decay": 0.1}, "amsgrad": {"betas": (0.9, 0.5)}}.get(
            key, {}
        )
        value = (2.0, 3.0) if (name, key) == ("adafactor", "eps") else OTHER[key]
        assert not torch.equal(train(name, {**needed, key: value}), train(name, needed)), key


@pytest.mark.parametrize("name", NAMES)
def test_yaml_values_are_accepted(name: str) -> None:
    defaults = dict(optimizers.get(name).schema())
    as_yaml = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    assert torch.equal(train(name, as_yaml), train(name, {}))


def test_sgd_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer("sgd", [weight], {"lr": 0.5, "momentum": 0.5, "weight_decay": 0.1})
    for expected in (1 - 0.5 * 1.1, 0.45 - 0.5 * (0.5 * 1.1 + 1.045)):
        weight.grad = torch.tensor([1.0])
        optimizer.step()
        assert weight.item() == pytest.approx(expected, abs=1e-6)


def test_parameter_groups_keep_their_own_settings() -> None:
    weight, bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    groups = [{"params": [weight]}, {"params": [bias], "weight_decay": 0.0, "lr": 0.01}]
    optimizer = build_optimizer("adamw", groups, {"weight_decay": 0.3})
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.001, 0.3),
        (0.01, 0.0),
    ]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("sgd", {"lr": 0}, "optimizer.lr = 0: input should be greater than 0"),
        ("sgd", {"momentum": 1.0}, "optimizer.momentum = 1.0"),
        (
            "sgd",
            {"nesterov": True, "momentum": 0.0},
            "optimizer 'sgd': Nesterov momentum requires a momentum",
        ),
        ("adam", {"betas": [0.9, 1.5]}, "optimizer.betas"),
        ("adam", {"fused": True}, "unknown key 'optimizer.fused'"),
        ("rmsprop", {"lr": "fast"}, "optimizer.lr = 'fast'"),
        ("rmsprop", {"lr": -1.0}, "optimizer 'rmsprop': Invalid learning rate: -1.0"),
        ("rmsprop", {"momentun": 0.9}, "unknown key 'optimizer.momentun' (did you mean 'momentum'?)"),
        ("adadelta", {"rho": float("nan")}, "optimizer.rho"),
        ("lbfgs", {}, "unknown optimizer 'lbfgs'"),
        ("torch.optim:nothing", {}, "cannot be imported"),
        (
            f"{__name__}:returns_its_parameters",
            {},
            ":returns_its_parameters' returned list; it must return a torch.optim.Optimizer",
        ),
    ],
)
def test_refuses(name: str, config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_optimizer(name, [nn.Parameter(torch.zeros(2))], config)


def returns_its_parameters(params: list) -> list:
    """A custom factory that is wrong."""
    return params
