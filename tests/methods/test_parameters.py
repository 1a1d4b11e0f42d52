from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from distsparse.core import Method
from distsparse.methods import dense, granet, methods, names, rigl, set_, static
from distsparse.methods.params import drop_fraction


@pytest.mark.parametrize("name", names())
def test_every_method_and_keyword_is_described(name: str) -> None:
    entry = methods.get(name)
    assert entry.summary.endswith(".")
    assert len(entry.source) > 20
    for field, info in entry.schema.model_fields.items():
        assert info.description, field
        assert not info.is_required() or (name, field) == ("lottery", "source")


BAD = [
    ("sparsity", 1.2, "less than 1"),
    ("sparsity", 1.0, "less than 1"),
    ("sparsity", -0.1, "greater than or equal to 0"),
    ("sparsity", float("nan"), "finite"),
    ("sparsity", "0.9", "valid number"),
    ("sparsity", None, "valid number"),
    ("delta_T", 0, "greater than 0"),
    ("delta_T", 1.5, "valid integer"),
    ("delta_T", True, "valid integer"),
    ("alpha", -1.0, "greater than 0"),
    ("alpha", 1.5, "less than or equal to 1"),
    ("T_end", 0.0, "greater than 0"),
    ("alpha_schedule", "cosin", "'constant', 'cosine', 'linear' or 'inverse_power'"),
    (
        "allocation",
        "ERK",
        "'uniform', 'uniform_first_dense', 'er', 'erk'",
    ),
    ("allocation_power", -0.5, "greater than or equal to 0"),
    ("allocation_power", 11.0, "less than or equal to 10"),
    ("sensitivity_norm", "l1", "'rms', 'l2' or 'mean_abs'"),
    ("grad_accumulation", 0, "greater than 0"),
    ("exclude_dropped", 1, "valid boolean"),
    ("grow_init", "random", "'zeros' or 'normal'"),
    ("skip_optimizer_step", "yes", "valid boolean"),
]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("field", "value", "allowed"), BAD)
def test_bad_keywords(name: str, field: str, value: Any, allowed: str) -> None:
    entry = methods.get(name)
    with pytest.raises(ValueError) as caught:
        entry.factory(**{field: value})
    message = str(caught.value)
    if field in entry.schema.model_fields:
        assert f"{name}.{field} = " in message
        assert repr(value) in message or value != value
        assert allowed in message
    else:
        assert f"unknown key '{name}.{field}'" in message
        assert f"allowed: {', '.join(entry.schema.model_fields) or 'nothing'}" in message


def test_every_allocation_comes_with_its_own_parameters() -> None:
    fields = {entry.name: set(entry.schema.model_fields) for entry in methods}
    allocating = [name for name in names() if "allocation" in fields[name]]
    assert len(allocating) >= 10
    for name in allocating:
        wanted = {"allocation_power", "sensitivity_norm"}
        if name == "imp":  # prunes where no gradient is at hand
            wanted.remove("sensitivity_norm")
        assert wanted <= fields[name], name


@pytest.mark.parametrize("name", ["gmp", "progressive", "imp"])
def test_an_update_cannot_allocate_by_what_is_measured_before_the_first_step(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}\.allocation = 'layer_scan': .* or 'lamp'"):
        methods.get(name).factory(allocation="layer_scan")
    assert granet(allocation="layer_scan").init_needs == {"loss_curve"}


def test_unknown_keyword_with_a_suggestion() -> None:
    with pytest.raises(
        ValueError, match=r"unknown key 'rigl\.delta_t' \(did you mean 'delta_T'\?\): allowed: sparsity,"
    ):
        rigl(delta_t=100)  # type: ignore[call-arg]


def test_several_mistakes_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"rigl\.sparsity = 2: .*; rigl\.alpha = -1: .*greater than 0"):
        rigl(sparsity=2, alpha=-1)


@pytest.mark.parametrize("factory", [dense, static, set_, rigl])
def test_keywords_only(factory: Callable[..., Method]) -> None:
    with pytest.raises(ValueError, match="takes keyword arguments only, for example"):
        factory(0.9)


def test_defaults_are_the_papers() -> None:
    method = rigl()
    assert (method.every, method.stop, method.gradient_window) == (100, 0.75, 1)
    assert method.skip_optimizer_step
    assert method.sparsity(0.5) == 0.9
    assert [move.name for move in method.init] == ["prune(random, erk)"]
    assert [move.name for move in method.update] == ["drop(magnitude)", "grow(gradient)"]
    method = set_()
    assert [move.name for move in method.init] == ["prune(random, er)"]
    assert [move.name for move in method.update] == ["drop(magnitude)", "grow(random)"]
    assert static().update == dense().update == dense().init == ()
    assert static().init_needs == set_().update_needs == frozenset()
    assert static(allocation="sensitivity").init_needs == {"grad"}


def test_keywords_reach_the_method() -> None:
    method = rigl(delta_T=7, T_end=50, grad_accumulation=4, skip_optimizer_step=False, sparsity=0.25)
    assert (method.every, method.stop, method.gradient_window) == (7, 50, 4)
    assert not method.skip_optimizer_step
    assert method.sparsity(0) == 0.25


@pytest.mark.parametrize(
    ("name", "half_way", "end"),
    [("constant", 0.4, 0.4), ("cosine", 0.2, 0), ("linear", 0.2, 0), ("inverse_power", 0.05, 0)],
)
def test_alpha_schedules(name: Any, half_way: float, end: float) -> None:
    curve = drop_fraction(name, 0.4)
    assert [curve(0.0), curve(0.5), curve(1.0)] == pytest.approx([0.4, half_way, end])
