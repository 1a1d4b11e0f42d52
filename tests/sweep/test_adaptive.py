"""Optuna's searches on a made-up truth: what they learn, resume, share between replicates and pass over."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from distsparse.config import RunConfig
from distsparse.sweep import parse_space
from distsparse.sweep.adaptive import Adaptive
from distsparse.sweep.space import ADAPTIVE, Space
from distsparse.train.history import Row

DOMAINS = {
    "method.name": {"choice": ["rigl", "static"]},
    "method.alpha": {"uniform": [0.1, 0.5]},
    "method.sparsity": {"quniform": [0.5, 0.95, 0.05]},
    "method.delta_T": {"randint": [5, 20]},
    "optimizer.lr": {"loguniform": [0.01, 1]},
}


def space(domains: dict[str, Any] | None = None, **values: Any) -> Space:
    values = {"search": "tpe", "num_samples": 12, "objectives": {"accuracy": "max"}, **values}
    return parse_space({"study": "s", "space": domains or DOMAINS, **values})


def row(config: RunConfig, *, noise: float = 0.0) -> Row:
    """Accuracy is best for rigl at alpha = 0.3, and falls with sparsity."""
    params = config.method.params
    accuracy = 0.9 - params["sparsity"] ** 8 / 2 - (params.get("alpha", 0.5) - 0.3) ** 2
    return {
        "status": "completed",
        "accuracy": accuracy + noise,
        "sparsity": params["sparsity"],
        "inference_flops": 1 - params["sparsity"],
        "config": json.dumps(config.to_dict()),
    }


def run(search: Adaptive, limit: int = 1000) -> list[RunConfig]:
    asked: list[RunConfig] = []
    while len(asked) < limit and (config := search.ask()) is not None:
        asked.append(config)
        search.tell(config, [row(config, noise=0.01), row(config, noise=-0.01)])
    return asked


def keys(configs: list[RunConfig]) -> list[str]:
    return [config.key for config in configs]


@pytest.mark.parametrize("kind", [name for name in ADAPTIVE if name != "gp"])
@pytest.mark.parametrize("objectives", [{"accuracy": "max"}, {"accuracy": "max", "sparsity": "max"}])
def test_as_many_different_points_as_asked_for(kind: str, objectives: dict[str, str], tmp_path: Path) -> None:
    asked = keys(run(Adaptive(space(search=kind, objectives=objectives), tmp_path)))
    assert len(asked) == len(set(asked)) == 12
    # The same seed chooses the same points.
    assert keys(run(Adaptive(space(search=kind, objectives=objectives), tmp_path / "again"))) == asked


def test_gaussian_process(tmp_path: Path) -> None:
    domains = {name: DOMAINS[name] for name in ("method.alpha", "method.sparsity")}
    assert len(run(Adaptive(space(domains, search="gp", num_samples=11), tmp_path))) == 11


def test_keywords_only_where_the_method_takes_them(tmp_path: Path) -> None:
    asked = run(Adaptive(space(), tmp_path))
    assert {config.method.name for config in asked} == {"rigl", "static"}
    for file in tmp_path.glob("*.json"):
        point = json.loads(file.read_text())["point"]
        assert ("method.alpha" in point) == (point["method.name"] == "rigl")


def test_it_learns(tmp_path: Path) -> None:
    domains = {"method.alpha": {"uniform": [0.1, 0.5]}, "method.sparsity": {"uniform": [0.5, 0.99]}}
    asked = run(Adaptive(space(domains, num_samples=60), tmp_path))
    accuracies = [row(config)["accuracy"] for config in asked]
    assert sum(accuracies[-20:]) > sum(accuracies[:20]) + 0.5


def test_constraint_holds_the_search_at_its_bound(tmp_path: Path) -> None:
    """Accuracy alone wants the least sparsity, 0.5; at most 0.2 of the FLOPs need 0.8."""
    domains = {"method.sparsity": {"uniform": [0.5, 0.99]}}

    def last(**values: Any) -> float:
        found = run(Adaptive(space(domains, num_samples=40, **values), tmp_path / str(len(values))))
        return sum(config.method.params["sparsity"] for config in found[-15:]) / 15

    assert last() < 0.7
    assert 0.77 < last(constraints={"inference_flops": {"max": 0.2}}) < 0.9


def test_same_command_chooses_the_same_points_first(tmp_path: Path) -> None:
    """Killed after five points, one of them unfinished: that one is asked for again, none is lost."""
    asked = run(Adaptive(space(), tmp_path), limit=5)
    second = Adaptive(space(), tmp_path)
    again = run(second)
    assert keys(again)[:5] == keys(asked)
    assert len(set(keys(again))) == 12
    # And what comes then is new: the sampler did not begin at the same random numbers.
    assert keys(run(Adaptive(space(), tmp_path))) == keys(again)


def test_points_outside_of_a_changed_space_are_passed_over(tmp_path: Path) -> None:
    run(Adaptive(space(), tmp_path), limit=5)
    narrow = space({**DOMAINS, "method.sparsity": {"quniform": [0.8, 0.95, 0.05]}})
    assert all(config.method.params["sparsity"] >= 0.8 for config in run(Adaptive(narrow, tmp_path)))


def test_learns_from_an_earlier_study(tmp_path: Path) -> None:
    earlier = [row(config) for config in run(Adaptive(space(), tmp_path / "earlier"))]
    foreign = row(parse_space({"space": {"method.name": {"choice": ["dense"]}}}).base)
    foreign["config"] = json.dumps({"method": {"name": "dense"}})
    search = Adaptive(space(search_seed=7), tmp_path / "later", earlier=[*earlier, foreign])
    assert search.num_learnt == 12
    asked = run(search)
    assert len(asked) == 12
    # Beyond the ten random points with which TPE begins.
    assert row(asked[0])["accuracy"] > 0.7


def test_what_an_earlier_study_tried_is_not_drawn_again(tmp_path: Path) -> None:
    """Though both have the same seed of the search, and begin with random points."""
    before = run(Adaptive(space(), tmp_path / "earlier"), limit=5)
    search = Adaptive(space(), tmp_path / "later", earlier=[row(config) for config in before])
    assert not set(keys(run(search))) & set(keys(before))


def test_sections_as_values(tmp_path: Path) -> None:
    methods = [{"name": "rigl", "sparsity": 0.8}, {"name": "set", "sparsity": 0.9}, "static"]
    found = space({"method": {"choice": methods}, "optimizer.lr": {"loguniform": [0.01, 1]}})
    asked = run(Adaptive(found, tmp_path / "a"))
    assert {config.method.name for config in asked} == {"rigl", "set", "static"}
    rows = [row(config) for config in asked]
    assert Adaptive(found, tmp_path / "b", earlier=rows).num_learnt == 12


def test_space_that_is_searched_through_ends(tmp_path: Path) -> None:
    found = space({"method.delta_T": {"choice": [1, 2, 3]}}, num_samples=10)
    assert len(run(Adaptive(found, tmp_path))) == 3


def test_failed_points_do_not_stop_it(tmp_path: Path) -> None:
    search = Adaptive(space(), tmp_path)
    while (config := search.ask()) is not None:
        search.tell(config, [{"status": "failed"}])
    assert len(list(tmp_path.glob("*.json"))) == 12


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        ValueError, match=r"search = 'tpe': needs Optuna \(pip install 'distsparse\[search\]'"
    ):
        Adaptive(space(), tmp_path)
