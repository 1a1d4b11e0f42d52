from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from distsparse.config import override
from distsparse.sweep import Space, parse_space
from distsparse.train import check

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "tune_spaces").glob("*.yaml"))
ALPHA = {"method.alpha": {"uniform": [0.1, 0.5]}}


def space(domains: Any, **values: Any) -> Space:
    return parse_space({"space": domains, **values})


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"spaces": {}}, ["'spaces'", "did you mean 'space'", "num_samples"]),
    "no space": ({}, ["space = None"]),
    "empty space": ({"space": {}}, ["space = {}", "at least one"]),
    "space is a list": ({"space": [1]}, ["space = [1]"]),
    "base is a list": ({"base": [1], "space": ALPHA}, ["base = [1]", "mapping"]),
    "base is text": ({"base": "rigl", "space": ALPHA}, ["base = 'rigl'", "mapping"]),
    "base is bad": ({"base": {"method": {"alpha": 2}}, "space": ALPHA}, ["method.alpha = 2", "less than"]),
    "no domain": ({"space": {"method.alpha": 0.3}}, ["space.method.alpha = 0.3", "choice"]),
    "two domains": (
        {"space": {"method.alpha": {"choice": [0.1], "grid": [0.1]}}},
        ["space.method.alpha", "must be one of"],
    ),
    "unknown domain": (
        {"space": {"method.alpha": {"unifrom": [0, 1]}}},
        ["space.method.alpha", "'unifrom'", "did you mean 'uniform'", "loguniform"],
    ),
    "empty list": ({"space": {"method.alpha": {"choice": []}}}, ["space.method.alpha.choice = []", "empty"]),
    "no list": ({"space": {"method.alpha": {"choice": 0.3}}}, ["space.method.alpha.choice = 0.3", "list"]),
    "bounds reversed": (
        {"space": {"method.alpha": {"uniform": [0.5, 0.1]}}},
        ["space.method.alpha.uniform = [0.5, 0.1]", "low must be less than high"],
    ),
    "bounds equal": ({"space": {"method.alpha": {"uniform": [0.5, 0.5]}}}, ["low must be less"]),
    "one bound": ({"space": {"method.alpha": {"uniform": [0.5]}}}, ["[low, high]"]),
    "bounds are text": ({"space": {"method.alpha": {"uniform": ["a", "b"]}}}, ["as numbers"]),
    "bounds are bools": ({"space": {"method.alpha": {"uniform": [False, True]}}}, ["as numbers"]),
    "infinite": ({"space": {"optimizer.lr": {"uniform": [0.1, math.inf]}}}, ["uniform", "low must be less"]),
    "loguniform from 0": (
        {"space": {"optimizer.lr": {"loguniform": [0, 1]}}},
        ["space.optimizer.lr.loguniform = [0, 1]", "greater than 0"],
    ),
    "quniform without step": ({"space": {"method.alpha": {"quniform": [0.1, 0.5]}}}, ["[low, high, step]"]),
    "quniform with step 0": (
        {"space": {"method.alpha": {"quniform": [0.1, 0.5, 0]}}},
        ["space.method.alpha.quniform", "step must be greater than 0"],
    ),
    "quniform between steps": (
        {"space": {"method.sparsity": {"quniform": [0.5, 0.99, 0.1]}}},
        ["space.method.sparsity.quniform = [0.5, 0.99, 0.1]", "multiples"],
    ),
    "randint with fractions": (
        {"space": {"method.delta_T": {"randint": [1.5, 9]}}},
        ["space.method.delta_T.randint = [1.5, 9]", "whole numbers"],
    ),
    "unknown path": (
        {"space": {"method.delta_t": {"choice": [5]}}},
        ["'method.delta_t'", "did you mean 'delta_T'"],
    ),
    "keyword of no method in the space": (
        {"space": {"method.name": {"choice": ["rigl", "set"]}, "method.gamma": {"choice": [0.1]}}},
        ["'method.gamma'", "allowed: sparsity"],
    ),
    "bad value of one method in the space": (
        {"space": {"method.name": {"choice": ["rigl", "srigl"]}, "method.gamma": {"choice": [2.0]}}},
        ["method.gamma = 2.0", "less than or equal to 1"],
    ),
    "unknown section": ({"space": {"methods.alpha": {"choice": [5]}}}, ["'methods.alpha'", "did you mean"]),
    "value out of range": (
        {"space": {"method.alpha": {"choice": [0.1, 1.5]}}},
        ["method.alpha = 1.5", "less than or equal to 1"],
    ),
    "upper bound out of range": (
        {"space": {"method.sparsity": {"uniform": [0.5, 1.5]}}},
        ["method.sparsity = 1.5", "less than 1"],
    ),
    "lower bound out of range": (
        {"space": {"method.delta_T": {"randint": [0, 9]}}},
        ["method.delta_T = 0", "greater than 0"],
    ),
    "fractions of a whole number": (
        {"space": {"method.delta_T": {"uniform": [10, 100]}}},
        ["method.delta_T = 10.0", "integer"],
    ),
    "second value of a list": (
        {"space": {"method": {"grid": [{"name": "dense"}, {"name": "rigel"}]}}},
        ["'rigel'", "did you mean 'rigl'"],
    ),
    "twice the same": ({"space": {"method.alpha": {"choice": [0.1, 0.1]}}}, ["a value appears twice"]),
    "a date": ({"space": {"seed": {"choice": [date(2026, 1, 1)]}}}, ["seed"]),
    "uniform in a grid": (
        {"space": ALPHA, "search": "grid"},
        ["space.method.alpha.uniform", "grid search", "search: random"],
    ),
    "unknown search": ({"space": ALPHA, "search": "bayes"}, ["search = 'bayes'", "random, grid, sobol, tpe"]),
    "adaptive without objectives": (
        {"space": ALPHA, "search": "tpe"},
        ["objectives", "search = 'tpe'", "{validation_accuracy: max, sparsity: max}"],
    ),
    "objectives of a random search": (
        {"space": ALPHA, "objectives": {"accuracy": "max"}},
        ["objectives", "search = 'random' does not use it", "tpe"],
    ),
    "bad objective": (
        {"space": ALPHA, "search": "gp", "objectives": {"accurcy": "max"}},
        ["objectives.accurcy", "did you mean 'accuracy'"],
    ),
    "latency that is not measured": (
        {
            "space": ALPHA,
            "search": "tpe",
            "objectives": {"latency_ms": "min"},
            "base": {"latency": {"measure": False}},
        },
        ["latency.measure = False"],
    ),
    "warm start": (
        {"space": ALPHA, "search": "tpe", "objectives": {"accuracy": "max"}, "warm_start": 3},
        ["warm_start = 3"],
    ),
    "max_trials": ({"space": ALPHA, "max_trials": 0}, ["max_trials = 0", "at least 1"]),
    "time budget": ({"space": ALPHA, "time_budget_s": -1}, ["time_budget_s = -1", "greater than 0"]),
    "time budget as text": ({"space": ALPHA, "time_budget_s": "1h"}, ["time_budget_s = '1h'", "seconds"]),
    "asha is a flag": ({"space": ALPHA, "asha": True}, ["asha = True", "mapping"]),
    "asha's key": ({"space": ALPHA, "asha": {"grac": 1}}, ["asha = {'grac': 1}", "grace"]),
    "asha's metric": ({"space": ALPHA, "asha": {"metric": "loss"}}, ["asha.metric = 'loss'", "accuracy"]),
    "asha's grace": ({"space": ALPHA, "asha": {"grace": 1.0}}, ["asha.grace = 1.0", "T_end"]),
    "asha's factor": ({"space": ALPHA, "asha": {"reduction_factor": 1}}, ["asha.reduction_factor = 1"]),
    "asha on workers": (
        {"space": ALPHA, "asha": {}, "base": {"launch": {"workers": 2}}},
        ["asha", "launch.workers must be 0"],
    ),
    "asha of two objectives": (
        {
            "space": ALPHA,
            "asha": {},
            "search": "tpe",
            "objectives": {"accuracy": "max", "sparsity": "max"},
        },
        ["asha", "one metric"],
    ),
    "worker_pool": ({"space": ALPHA, "worker_pool": "warm"}, ["worker_pool = 'warm'", "true or false"]),
    "no samples": ({"space": ALPHA, "num_samples": 0}, ["num_samples = 0", "at least 1"]),
    "samples as text": ({"space": ALPHA, "num_samples": "many"}, ["num_samples = 'many'"]),
    "negative search_seed": ({"space": ALPHA, "search_seed": -1}, ["search_seed = -1", "at least 0"]),
    "max_concurrent": ({"space": ALPHA, "max_concurrent": 0}, ["max_concurrent = 0", "at least 1"]),
    "no seeds": ({"space": ALPHA, "seeds": []}, ["seeds = []"]),
    "seed is no list": ({"space": ALPHA, "seeds": 3}, ["seeds = 3", "list"]),
    "seed twice": ({"space": ALPHA, "seeds": [1, 1]}, ["seeds = [1, 1]", "different"]),
    "negative seed": ({"space": ALPHA, "seeds": [0, -1]}, ["seed = -1", "at least 0"]),
    "seed as a fraction": ({"space": ALPHA, "seeds": [0.5]}, ["seed = 0.5"]),
    "workers as a domain": (
        {"space": {"launch.workers": {"choice": [1, 2]}}},
        ["space.launch.workers", "under base"],
    ),
    "study as a domain": ({"space": {"study": {"choice": ["a", "b"]}}}, ["space.study", "under base"]),
    "seed as a domain": ({"space": {"seed": {"choice": [1, 2]}}}, ["space.seed", "under seeds"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_space_is_one_clear_line(case: str) -> None:
    values, expected = BAD[case]
    with pytest.raises(ValueError) as caught:
        parse_space(values)
    message = str(caught.value)
    assert "\n" not in message
    for text in expected:
        assert text in message


def shipped(file: Path) -> Space:
    return parse_space(YAML(typ="safe", pure=True).load(file))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_spaces_are_valid(file: Path) -> None:
    configs = shipped(file).configs()
    assert len({config.key for config in configs}) == len(configs) > 1
    assert {config.study for config in configs} == {file.stem}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_spaces_say_what_they_ask_and_cost(file: Path) -> None:
    lines = file.read_text().splitlines()
    comment = [line for line in lines if line.startswith("#")]
    assert "?" in comment[0]
    (cost,) = [line for line in comment if line.startswith("# Cost: ")]
    number = int(cost.split()[2])
    found = shipped(file)
    # Of points where seeds are a factor of their own, else of trials.
    expected = len(found.points()) if "seeds" in cost else len(found.configs())
    assert number == expected


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_spaces_can_run(file: Path) -> None:
    """Every method rehearses its first step, on noise of MNIST's shape."""
    found = shipped(file)
    configs = found.configs() if found.search == "grid" else replace(found, num_samples=6).configs()
    noise = {"name": "parts:pictures", "samples": 6000, "size": 28}
    # Of each method with its other parameters, the highest sparsity: it leaves the least room.
    configs.sort(key=lambda config: config.method.params.get("sparsity", 0.0))
    for config in {str(config.to_dict()["method"] | {"sparsity": 0}): config for config in configs}.values():
        check(override(config, {"data": noise}))


def test_delta_t_study() -> None:
    found = shipped(SHIPPED[0].with_name("delta_t.yaml"))
    assert {config.method.params["delta_T"] for config in found.configs()} == {10, 100, 1000}


def test_comparison_table_has_every_family() -> None:
    found = shipped(SHIPPED[0].with_name("methods.yaml"))
    names = {config.method.name for config in found.configs()}
    assert names >= {
        "dense",
        "static",
        "imp",
        "snip",
        "grasp",
        "synflow",
        "set",
        "rigl",
        "snfs",
        "dsr",
        "gmp",
    }
    assert len(found.seeds) >= 3


def sampled(found: Space) -> list[str]:
    return [config.key for config in found.configs()]


def test_sampling_depends_on_the_search_seed_alone() -> None:
    first = sampled(space(ALPHA, num_samples=5))
    assert sampled(space(ALPHA, num_samples=5)) == first
    assert not set(sampled(space(ALPHA, num_samples=5, search_seed=1))) & set(first)
    # More samples go on where fewer ended.
    assert sampled(space(ALPHA, num_samples=7))[:5] == first
    # Another study is not another sample.
    assert sampled(space(ALPHA, num_samples=5, study="other")) == first


def test_exact_number_of_different_trials() -> None:
    choices = {"method.delta_T": {"choice": [1, 2, 3]}, "method.alpha": {"choice": [0.1, 0.2]}}
    for number in range(1, 7):
        configs = space(choices, num_samples=number).configs()
        assert len({config.key for config in configs}) == len(configs) == number
    # There are no more than six.
    points = {
        (config.method.params["delta_T"], config.method.params["alpha"])
        for config in space(choices, num_samples=9).configs()
    }
    assert points == {(delta, alpha) for delta in (1, 2, 3) for alpha in (0.1, 0.2)}


def test_grid_is_every_combination_once() -> None:
    domains = {"method.delta_T": {"grid": [1, 2, 3]}, "method.alpha": {"choice": [0.1, 0.2]}}
    configs = space(domains, search="grid", seeds=[0, 7]).configs()
    points = Counter((c.method.params["delta_T"], c.method.params["alpha"], c.seed) for c in configs)
    assert points == {(d, a, s): 1 for d in (1, 2, 3) for a in (0.1, 0.2) for s in (0, 7)}


def test_what_makes_no_other_trial_is_no_domain() -> None:
    with pytest.raises(ValueError, match=r"space\.checkpoint\.keep: makes no other trial"):
        space({"checkpoint.keep": {"grid": [1, 2]}}, search="grid")


@pytest.mark.parametrize("path", ["method.alpha", "method"])
def test_set_of_what_the_space_chooses_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=rf"--set {path}: the space chooses method\.alpha"):
        parse_space({"space": ALPHA}, {path: 0.5})
    with pytest.raises(ValueError, match="--set seed: the space lists its seeds"):
        parse_space({"space": ALPHA, "seeds": [0, 1]}, {"seed": 3})


def test_grid_within_a_random_search() -> None:
    """Each grid value with each of the samples."""
    domains = {"method.delta_T": {"grid": [1, 2]}, **ALPHA}
    configs = space(domains, num_samples=3).configs()
    assert len(configs) == 6
    assert Counter(config.method.params["delta_T"] for config in configs) == {1: 3, 2: 3}


def test_sobol_fills_the_space_evenly() -> None:
    """Of 16 points, one in each sixteenth of both ranges, and four in each quarter of the square."""
    domains = {"method.alpha": {"uniform": [0.1, 0.9]}, "optimizer.lr": {"loguniform": [0.01, 1]}}
    configs = space(domains, search="sobol", num_samples=16).configs()
    alphas = [(config.method.params["alpha"] - 0.1) / 0.8 for config in configs]
    rates = [math.log10(config.optimizer.params["lr"]) / 2 + 1 for config in configs]
    assert sorted(int(alpha * 16) for alpha in alphas) == list(range(16))
    assert sorted(int(rate * 16) for rate in rates) == list(range(16))
    quarters = Counter((alpha < 0.5, rate < 0.5) for alpha, rate in zip(alphas, rates, strict=True))
    assert set(quarters.values()) == {4}


def test_sobol_over_every_kind_of_domain() -> None:
    domains = {
        "method.alpha": {"quniform": [0.1, 0.4, 0.1]},
        "method.delta_T": {"randint": [1, 5]},
        "method.allocation": {"choice": ["er", "erk"]},
        "method.sparsity": {"grid": [0.5, 0.9]},
    }
    found = space(domains, search="sobol", num_samples=24, seeds=[0, 1])
    configs = found.configs()
    assert len(configs) == 24 * 2 * 2
    params = [config.method.params for config in configs]
    assert {p["alpha"] for p in params} == {0.1, 0.2, 0.3, 0.4}
    assert {p["delta_T"] for p in params} == {1, 2, 3, 4}
    assert Counter(p["sparsity"] for p in params) == {0.5: 48, 0.9: 48}
    assert sampled(found.with_samples(5))[:20] == sampled(found)[:20]


def test_sections_as_values() -> None:
    methods = [{"name": "dense"}, {"name": "set", "alpha": 0.2}, "static"]
    configs = space({"method": {"grid": methods}}, search="grid").configs()
    assert [config.method.name for config in configs] == ["dense", "set", "static"]
    assert configs[1].method.params["alpha"] == 0.2


def test_lists_as_values() -> None:
    configs = space({"model.hidden": {"choice": [[30], [30, 10], []]}}, num_samples=3).configs()
    assert {config.model.params["hidden"] for config in configs} == {(30,), (30, 10), ()}


def test_seeds_replicate_the_same_points() -> None:
    configs = space(ALPHA, num_samples=4, seeds=[3, 5, 9]).configs()
    by_seed: dict[int, list[float]] = {}
    for config in configs:
        by_seed.setdefault(config.seed, []).append(config.method.params["alpha"])
    assert set(by_seed) == {3, 5, 9}
    assert by_seed[3] == by_seed[5] == by_seed[9]
    assert len(set(by_seed[3])) == 4
    assert by_seed[3] == [c.method.params["alpha"] for c in space(ALPHA, num_samples=4).configs()]


def test_seed_of_the_base_is_the_default() -> None:
    configs = space(ALPHA, num_samples=2, base={"seed": 11}).configs()
    assert [config.seed for config in configs] == [11, 11]


def values(kind: str, arguments: list[float], path: str, number: int = 40) -> list[Any]:
    found = space({path: {kind: arguments}}, num_samples=number).configs()
    return [config.flat()[path] for config in found]


def test_uniform_fills_its_range() -> None:
    alphas = values("uniform", [0.2, 0.6], "method.alpha")
    assert len(alphas) == 40
    assert all(0.2 <= alpha <= 0.6 for alpha in alphas)
    assert min(alphas) < 0.3
    assert max(alphas) > 0.5


def test_loguniform_is_uniform_in_the_exponent() -> None:
    rates = values("loguniform", [1e-4, 1], "optimizer.lr", 100)
    assert all(1e-4 <= rate <= 1 for rate in rates)
    # Half of them below the geometric mean; a uniform draw would have one in a hundred there.
    assert 30 < sum(rate < 1e-2 for rate in rates) < 70


def test_quniform_gives_multiples_of_its_step() -> None:
    found = values("quniform", [0.1, 0.6, 0.1], "method.alpha")
    # Without the noise of binary fractions, or equal points would have different keys.
    assert set(found) == {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}


def test_quniform_of_whole_numbers_gives_whole_numbers() -> None:
    found = values("quniform", [50, 200, 50], "method.delta_T")
    assert set(found) == {50, 100, 150, 200}
    assert all(type(value) is int for value in found)


def test_randint_leaves_out_its_upper_bound() -> None:
    found = values("randint", [1, 5], "method.delta_T")
    assert set(found) == {1, 2, 3, 4}
    assert all(type(value) is int for value in found)
    (domain,) = space({"method.delta_T": {"randint": [1, 5]}}).domains
    assert domain.probes() == [1, 4]


def test_number_of_samples_from_the_command_line() -> None:
    found = space(ALPHA, num_samples=2).with_samples(5)
    assert sampled(found) == sampled(space(ALPHA, num_samples=5))
    with pytest.raises(ValueError, match="num_samples = 0"):
        found.with_samples(0)
    with pytest.raises(ValueError, match="--trials: a grid"):
        space({"method.alpha": {"grid": [0.1]}}, search="grid").with_samples(3)


def test_overrides_change_the_base() -> None:
    found = parse_space({"space": ALPHA, "base": {"train": {"epochs": 7}}}, {"train.epochs": 3, "study": "x"})
    assert (found.base.train.epochs, found.base.study) == (3, "x")


def test_combination_that_is_not_valid_is_refused() -> None:
    """Each value is valid with the first of the others; 15 samples are no 2 × 10 micro-batches."""
    domains = {"train.batch_size": {"grid": [20, 15]}, "train.accumulation": {"grid": [1, 10]}}
    with pytest.raises(ValueError, match=r"train.batch_size = 15: must be a multiple of 10"):
        space(domains, search="grid").configs()


def test_a_keyword_is_varied_where_the_component_takes_it() -> None:
    """2 values of gamma with srigl, none with rigl, each with 2 sparsities: 6 of the grid's 8 points."""
    domains = {
        "method.gamma": {"grid": [0.1, 0.2]},
        "method.name": {"grid": ["rigl", "srigl"]},
        "method.sparsity": {"grid": [0.5, 0.9]},
    }
    found = [config.method for config in space(domains, search="grid").configs()]
    assert sorted(
        (m.name, m.params["sparsity"], m.params.get("gamma")) for m in found if m.name == "srigl"
    ) == [("srigl", sparsity, gamma) for sparsity in (0.5, 0.9) for gamma in (0.1, 0.2)]
    assert [m.params["sparsity"] for m in found if m.name == "rigl"] == [0.5, 0.9]
    assert len(found) == 6
