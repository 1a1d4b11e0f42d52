"""Who copies whom, what changes, when, and which settings may: by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from parts import TINY, blobs, tiny

from distsparse.config import override
from distsparse.sweep import parse_space
from distsparse.sweep.domain import Domain
from distsparse.sweep.pbt import Pbt, changeable, check_run, compare, comparisons, parse_pbt, perturbed
from distsparse.train.build import build_method
from distsparse.train.rewind import Plan

LR = Domain("optimizer.lr", "loguniform", bounds=(0.01, 1.0))
ALPHA = Domain("method.alpha", "uniform", bounds=(0.1, 0.5))
NEVER, ALWAYS = Pbt(resample_probability=0.0), Pbt(resample_probability=1.0)


def copies(scores: list[float], quantile: float = 0.25, seed: int = 0) -> dict[int, int]:
    """Return who copies whom."""
    named = {str(i): score for i, score in enumerate(scores)}
    settings = {name: {"optimizer.lr": 0.1} for name in named}
    found = compare(named, settings, Pbt(quantile=quantile), [LR], seed=[seed])
    return {int(name): int(e.source) for name, e in found.items() if e.source is not None}


def test_the_last_copy_the_first() -> None:
    assert copies([0.5, 0.9, 0.1, 0.7]) == {2: 1}
    # ⌈0.25 · 5⌉ = 2: each of the last two copies one of the first two.
    sources = [copies([0.1, 0.2, 0.3, 0.4, 0.5], seed=seed) for seed in range(40)]
    assert {tuple(found) for found in sources} == {(0, 1)}
    assert {source for found in sources for source in found.values()} == {3, 4}
    # ⌈0.5 · 3⌉ would be 2; nobody is both among the first and the last.
    assert copies([0.1, 0.2, 0.3], quantile=0.5) == {0: 2}
    assert copies([0.3]) == {}


def test_equal_scores() -> None:
    """The earlier member ranks higher; nobody copies one who is no better."""
    assert copies([0.5, 0.5, 0.5, 0.5]) == {}
    assert copies([0.2, 0.9, 0.2, 0.9]) == {2: 1}


def test_a_choice_depends_on_the_seed_alone() -> None:
    scores = {str(i): i / 10 for i in range(8)}
    settings = {name: {"optimizer.lr": 0.1, "method.alpha": 0.3} for name in scores}
    first = compare(scores, settings, Pbt(), [LR, ALPHA], seed=[1, 2])
    assert compare(scores, settings, Pbt(), [LR, ALPHA], seed=[1, 2]) == first
    assert compare(scores, settings, Pbt(), [LR, ALPHA], seed=[1, 3]) != first


def test_settings_of_who_stays_and_of_who_copies() -> None:
    settings: dict[str, dict[str, Any]] = {
        "good": {"optimizer.lr": 0.1, "method.alpha": 0.3},
        "bad": {"optimizer.lr": 0.9, "method.alpha": 0.5},
    }
    found = compare({"good": 0.8, "bad": 0.4}, settings, NEVER, [LR], seed=[0])
    assert (found["good"].source, found["good"].settings) == (None, settings["good"])
    assert (found["bad"].source, found["bad"].score, found["bad"].source_score) == ("good", 0.4, 0.8)
    # Perturbed from the source's, where something may change; else the source's own.
    assert found["bad"].settings["optimizer.lr"] in (pytest.approx(0.08), pytest.approx(0.12))
    assert found["bad"].settings["method.alpha"] == 0.3


def draws(domain: Domain, value: Any, rule: Pbt, number: int = 400) -> Counter[Any]:
    random = np.random.default_rng(0)
    return Counter(perturbed(domain, value, rule, random) for _ in range(number))


def test_factors() -> None:
    found = draws(LR, 0.1, NEVER)
    assert found.keys() == {0.1 * 0.8, 0.1 * 1.2}
    assert all(150 < count < 250 for count in found.values())
    assert draws(LR, 0.1, replace(NEVER, factors=(2.0,))).keys() == {0.2}


def test_a_setting_stays_in_its_domain() -> None:
    assert draws(LR, 0.9, NEVER).keys() == {0.9 * 0.8, 1.0}
    assert draws(LR, 0.011, NEVER).keys() == {0.01, 0.011 * 1.2}
    steps = Domain("method.delta_T", "randint", bounds=(10, 21))
    assert draws(steps, 19, NEVER).keys() == {15, 20}
    assert all(isinstance(value, int) for value in draws(steps, 12, NEVER))
    tenths = Domain("method.alpha", "quniform", bounds=(0.1, 0.5, 0.1))
    assert draws(tenths, 0.3, replace(NEVER, factors=(1.4, 3.0))).keys() == {0.4, 0.5}


def test_a_choice_moves_to_a_neighbour() -> None:
    listed = Domain("optimizer.momentum", "choice", values=(0.5, 0.9, 0.99))
    assert draws(listed, 0.9, NEVER).keys() == {0.5, 0.99}
    assert draws(listed, 0.5, NEVER).keys() == {0.5, 0.9}


def test_resampling() -> None:
    """Anywhere in the domain, as often as was asked for."""
    found = draws(LR, 0.1, ALWAYS)
    assert len(found) == 400
    assert min(found) < 0.015
    assert max(found) > 0.7
    some = draws(LR, 0.1, replace(ALWAYS, resample_probability=0.25))
    assert 60 < 400 - some[0.1 * 0.8] - some[0.1 * 1.2] < 140


PLAN = Plan(steps_per_epoch=10, steps_per_round=100)


@pytest.mark.parametrize(
    ("grace", "method", "expected"),
    [
        (None, "rigl", [80, 90]),  # its topology is final after step 75
        (None, "static", [20, 30, 40, 50, 60, 70, 80, 90]),
        (0.0, "rigl", [20, 30, 40, 50, 60, 70, 80, 90]),
        (0.5, "rigl", [60, 70, 80, 90]),
    ],
)
def test_no_comparison_in_the_grace(grace: float | None, method: str, expected: list[int]) -> None:
    config = tiny({"method.name": method})
    found = comparisons(Pbt(grace=grace), config, PLAN, [LR])
    assert [step for step in found if step >= 20] == expected
    every_third = comparisons(Pbt(grace=grace, interval=3), config, PLAN, [LR])
    assert list(every_third) == [step for step in found if step % 30 == 0]


def test_method_settings_change_until_T_end() -> None:
    found = comparisons(Pbt(grace=0.5), tiny(), PLAN, [LR, ALPHA])
    assert found == {60: [LR, ALPHA], 70: [LR, ALPHA], 80: [LR], 90: [LR]}
    with pytest.raises(ValueError, match=r"pbt\.interval = 1: .* no effect after T_end, step 75"):
        comparisons(Pbt(), tiny(), PLAN, [ALPHA])
    with pytest.raises(ValueError, match=r"pbt\.interval = 10: .* multiple of 100 steps"):
        comparisons(Pbt(interval=10), tiny(), PLAN, [LR])


@pytest.mark.parametrize(
    ("values", "absent"),
    [
        ({"method.name": "rigl"}, []),
        ({"method": {"name": "rigl", "grad_accumulation": 4}}, ["method.delta_T"]),
        ({"method": "granet"}, ["method.delta_T"]),
        ({"method": {"name": "granet", "initial_sparsity": 0.9}}, []),
        ({"method": "gmp"}, ["method.alpha", "method.delta_T"]),
        ({"method": "acdc"}, ["method.alpha", "method.delta_T"]),
        ({"method": "static"}, ["method.alpha", "method.delta_T"]),
    ],
)
def test_what_may_change(values: dict[str, Any], absent: list[str]) -> None:
    found = changeable(tiny(values))
    expected = {"optimizer.lr", "optimizer.momentum", "optimizer.weight_decay", "train.clip_norm"}
    assert expected <= set(found)
    assert {"method.alpha", "method.delta_T"} - set(found) == set(absent)
    fixed = ("sparsity", "T_end", "allocation", "nesterov", "alpha_schedule")
    assert not [name for name in found if name.endswith(fixed)]


def test_options_of_other_optimizers() -> None:
    assert "optimizer.betas" in changeable(tiny({"optimizer": "adamw"}))
    found = changeable(tiny({"optimizer": "adagrad"}))
    assert "optimizer.lr" in found
    assert "optimizer.initial_accumulator_value" not in found


def space(domains: Any, **values: Any) -> Any:
    return parse_space({"base": TINY, "pbt": {}, "space": domains, **values})


LRS = {"optimizer.lr": {"loguniform": [0.01, 1]}}


@pytest.mark.parametrize(
    "domain",
    [
        {"method.sparsity": {"choice": [0.8, 0.9]}},
        {"method.allocation": {"choice": ["er", "erk"]}},
        {"method.T_end": {"choice": [0.5, 0.7]}},
        {"method.name": {"choice": ["set", "rigl"]}},
        {"method": {"choice": [{"name": "set"}, {"name": "rigl"}]}},
        {"model.hidden": {"choice": [[8], [16]]}},
        {"data.samples": {"choice": [60, 120]}},
        {"train.epochs": {"choice": [2, 4]}},
        {"train.batch_size": {"choice": [5, 10]}},
        {"optimizer.nesterov": {"choice": [True, False]}},
        {"lr_schedule.name": {"choice": ["cosine", "constant"]}},
    ],
    ids=lambda domain: next(iter(domain)),
)
def test_what_is_fixed_during_a_run_is_refused(domain: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        space({**LRS, **domain})
    message = str(caught.value)
    assert message.startswith(f"space.{next(iter(domain))}: pbt changes settings during a run")
    assert "optimizer.lr, optimizer.momentum" in message
    assert "method.alpha, method.delta_T" in message


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "flag": ({"pbt": True}, "pbt = True: must be a mapping with metric, interval, grace"),
    "key": ({"pbt": {"intervall": 1}}, "pbt = {'intervall': 1}: must be a mapping"),
    "metric": ({"pbt": {"metric": "loss"}}, "pbt.metric = 'loss': allowed: validation_accuracy, accuracy"),
    "interval": ({"pbt": {"interval": 0}}, "pbt.interval = 0: must be a whole number"),
    "grace": ({"pbt": {"grace": 1}}, "pbt.grace = 1: must be T_end, or a fraction"),
    "quantile": ({"pbt": {"quantile": 0.6}}, "pbt.quantile = 0.6: must be a fraction"),
    "chance": ({"pbt": {"resample_probability": 2}}, "pbt.resample_probability = 2: must be in [0, 1]"),
    "factors": ({"pbt": {"factors": [1]}}, "pbt.factors = [1]: must be a list of numbers above 0"),
    "asha": ({"asha": {}}, "pbt: the trials of a population train together, all of them; leave out asha"),
    "max_trials": ({"max_trials": 3}, "leave out max_trials"),
    "search": (
        {"search": "tpe", "objectives": {"accuracy": "max"}},
        "pbt: search = 'tpe' chooses by results, too; allowed: random, grid, sobol",
    ),
    "evaluations": (
        {"base": {**TINY, "train": {"evaluate_every": 2}}, "pbt": {"interval": 3}},
        "pbt.interval = 3: must be a multiple of train.evaluate_every, which is 2",
    ),
    "own workers": (
        {"base": {**TINY, "launch": {"workers": 2}}, "worker_pool": False},
        "worker_pool must be true",
    ),
    "a member as base": (
        {"base": {**TINY, "population": {"id": "abc", "member": 1}}},
        "base.population.id = 'abc': is set by a sweep with pbt",
    ),
    "a member as domain": (
        {"pbt": None, "space": {"population.member": {"choice": [1, 2]}}},
        "space.population.member: is set by a sweep with pbt",
    ),
    "momentum from 0": (
        {
            "base": {**TINY, "optimizer": {"name": "rmsprop"}},
            "space": {"optimizer.momentum": {"choice": [0, 0.9]}},
        },
        "space.optimizer.momentum: rmsprop that began with 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rule_is_one_clear_line(case: str) -> None:
    values, expected = BAD[case]
    with pytest.raises(ValueError) as caught:
        space(**{"domains": LRS} | {"domains" if k == "space" else k: v for k, v in values.items()})
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_budget_of_trials_on_the_command_line() -> None:
    with pytest.raises(ValueError, match="--max-trials 2: the trials of a population train together"):
        space(LRS).with_budget(time_budget_s=None, max_trials=2)


def test_defaults() -> None:
    assert parse_pbt({}) == Pbt("validation_accuracy", 1, None, 0.25, 0.25, (0.8, 1.2))
    assert parse_pbt({"grace": 0.5, "factors": [0.5, 2]}) == Pbt(grace=0.5, factors=(0.5, 2))
    assert parse_pbt(None) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "needs a validation split; set data.validation"),
        ({"method": "imp"}, "method.name = 'imp': goes back to early weights"),
        ({"loggers.tensorboard": True}, "loggers.tensorboard = True: not with pbt"),
        ({"lr_schedule": "fine_tuning"}, "lr_schedule.name = 'fine_tuning': may end a run early"),
    ],
)
def test_runs_that_cannot_be_compared(values: dict[str, Any], expected: str) -> None:
    dataset = blobs(validation=30 if values else 0)
    with pytest.raises(ValueError, match=expected.replace(".", r"\.")):
        check_run(Pbt(), override(TINY, values), dataset, [LR])
    check_run(Pbt(), tiny(), blobs(validation=30), [LR])


def test_members_of_a_population() -> None:
    """Each is known by its number and all that the population begins with; its settings may change."""
    found = space(LRS, num_samples=4, seeds=[0, 1])
    members = found.configs()
    assert len({config.key for config in members}) == 8
    assert [config.population.member for config in members] == [0, 0, 1, 1, 2, 2, 3, 3]
    changed = override(members[0], {"optimizer.lr": 0.5, "checkpoint.keep": 7})
    assert changed.key == members[0].key
    assert build_method(changed) is not None
    others = [
        space(LRS, num_samples=5),
        space(LRS, num_samples=4, search_seed=1),
        space(LRS, num_samples=4, pbt={"quantile": 0.5}),
        space(LRS, num_samples=4, base={**TINY, "train": {"epochs": 9}}),
        space({"optimizer.lr": {"loguniform": [0.01, 2]}}, num_samples=4),
    ]
    ids = {other.configs()[0].population.id for other in others}
    assert len(ids) == 5
    assert members[0].population.id not in ids
    again = space(LRS, num_samples=4, base={**TINY, "latency": {"measure": True}}, seeds=[1])
    assert again.configs()[0].key == members[1].key
