"""Searches of Optuna: each point is chosen by what the points before it gave."""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distsparse import results
from distsparse.config import RunConfig, override
from distsparse.sweep.domain import Domain
from distsparse.sweep.space import Point, Space, applicable, takes_part
from distsparse.train.history import Row

if TYPE_CHECKING:
    import optuna

ASKS = 100
"""draws for one point that is new and valid, before the space counts as searched through"""


class Adaptive:
    """An Optuna study over the points of a space, in the driver's memory.

    Each point is written down when it is chosen, so that the same command chooses the same points again
    first, and hears of those that are over before it chooses new ones. Replicates are one point with the
    mean of their values; a point is not tried twice.

    Args:
        space: with an adaptive search, and the goal.
        folder: where the points are written down, a file each.
        earlier: rows of ``trials`` of another study to learn from; what does not lie in the space is passed
            over. Their points do not count.

    Raises:
        ValueError: Optuna is not installed.
    """

    def __init__(self, space: Space, folder: Path, *, earlier: Sequence[Row] = ()) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ValueError(
                f"search = {space.search!r}: needs Optuna (pip install 'distsparse[search]'): {error}"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        assert space.goal is not None
        self.num_points = space.num_samples
        self._space, self._goal, self._folder = space, space.goal, folder
        self._recorded = deque(_recorded(folder, space))
        learnt = _points(earlier, space)
        self._study = optuna.create_study(
            directions=[
                "maximize" if direction == "max" else "minimize"
                for direction in self._goal.objectives.values()
            ],
            # A sampler that began anew would draw the points again that it drew before.
            sampler=_sampler(space, seed=(space.search_seed, len(self._recorded) + len(learnt))),
        )
        self._trials: dict[str, optuna.trial.Trial] = {}
        self._means: dict[str, dict[str, float] | None] = {}
        self.num_learnt = sum(self._learn(point, rows) for point, rows in learnt)

    def ask(self) -> RunConfig | None:
        """Return the next point: those that were chosen before first, then new ones."""
        if len(self._trials) >= self.num_points:
            return None
        if self._recorded:
            config, trial = self._draw(self._recorded.popleft())
            assert config is not None
            self._trials[config.key] = trial
            return config
        for _ in range(ASKS):
            config, trial = self._draw()
            if config is not None and config.key not in self._trials:
                self._trials[config.key] = trial
                _record(self._folder, config, self._point_of(trial), number=len(self._trials))
                return config
            # The sampler learns what it drew: a combination that is not valid, or a point that it had.
            self._tell(trial, self._means.get(config.key) if config is not None else None)
        return None

    def tell(self, point: RunConfig, rows: Sequence[Row]) -> None:
        """Tell Optuna the means of a point's replicates, or that it failed."""
        self._means[point.key] = self._goal.means(rows)
        self._tell(self._trials[point.key], self._means[point.key])

    def _draw(self, fixed: Point | None = None) -> tuple[RunConfig | None, optuna.trial.Trial]:
        """Let Optuna draw a point, or take a fixed one; its configuration is None if it is not valid."""
        if fixed is not None:
            params = {path: self._domain(path).to_param(value) for path, value in fixed.items()}
            self._study.enqueue_trial(params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is experimental, and of a GP's start
            trial = self._study.ask()
            point: Point = {}
            # Names first: a keyword has a value only where the component takes it.
            for domain in sorted(self._space.domains, key=lambda domain: not domain.path.endswith(".name")):
                if takes_part(domain.path, point):
                    point[domain.path] = domain.suggest(trial)
        try:
            return override(self._space.base, applicable(point)), trial
        except ValueError:
            return None, trial

    def _point_of(self, trial: optuna.trial.Trial) -> Point:
        return {path: self._domain(path).value(param) for path, param in trial.params.items()}

    def _domain(self, path: str) -> Domain:
        return next(domain for domain in self._space.domains if domain.path == path)

    def _tell(self, trial: optuna.trial.Trial, means: Mapping[str, float] | None) -> None:
        import optuna

        if means is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        trial.set_user_attr("violations", self._goal.violations(means))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.tell(trial, [means[name] for name in self._goal.objectives])

    def _learn(self, point: Point, rows: Sequence[Row]) -> bool:
        means = self._goal.means(rows)
        if means is not None:
            _, trial = self._draw(point)
            self._tell(trial, means)
        return means is not None


def _sampler(space: Space, *, seed: tuple[int, int]) -> optuna.samplers.BaseSampler:
    import optuna

    samplers = optuna.samplers
    assert space.goal is not None
    constraints: dict[str, Any] = {}
    if space.goal.constraints:
        constraints["constraints_func"] = lambda trial: trial.user_attrs.get("violations", [0.0])
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    # Of NSGA's own 50, a study of a hundred points would see two generations.
    population = max(4, min(50, space.num_samples // 5))
    make: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
        # Parameters that only some points have are a group of their own; running points are kept away from.
        "tpe": lambda **rest: samplers.TPESampler(multivariate=True, group=True, constant_liar=True, **rest),
        "gp": samplers.GPSampler,
        "nsga2": lambda **rest: samplers.NSGAIISampler(population_size=population, **rest),
        "nsga3": lambda **rest: samplers.NSGAIIISampler(population_size=population, **rest),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make[space.search](seed=number, **constraints)


def _record(folder: Path, config: RunConfig, point: Point, *, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with results.replacing(folder / f"{config.key}.json") as file:
        file.write(json.dumps({"number": number, "point": point}).encode())


def _recorded(folder: Path, space: Space) -> list[Point]:
    """Return the points that were chosen before and lie in the space, in the order of their choice."""
    found = [json.loads(file.read_bytes()) for file in sorted(folder.glob("*.json"))]
    points = [entry["point"] for entry in sorted(found, key=lambda entry: entry["number"])]
    return [point for point in points if _lies_in(space, point)]


def _lies_in(space: Space, point: Point) -> bool:
    domains = {domain.path: domain for domain in space.domains}
    expected = {path for path in domains if takes_part(path, point)}
    return point.keys() == expected and all(domains[path].holds(value) for path, value in point.items())


def _points(rows: Iterable[Row], space: Space) -> list[tuple[Point, list[Row]]]:
    """Return the points of a space that an earlier study's rows are of, each with its replicates."""
    grouped: dict[str, tuple[Point, list[Row]]] = {}
    for row in rows:
        config = json.loads(row["config"])
        point = {
            domain.path: value
            for domain in space.domains
            if (value := _value_in(space, config, domain)) is not None
        }
        if _lies_in(space, point):
            grouped.setdefault(json.dumps(point, sort_keys=True), (point, []))[1].append(row)
    return list(grouped.values())


def _value_in(space: Space, config: Mapping[str, Any], domain: Domain) -> Any:
    """Return the domain's value that a plain configuration has, or None."""
    section, _, name = domain.path.partition(".")
    value = config.get(section)
    if name:
        return value.get(name) if isinstance(value, dict) else None
    # A whole section: the configuration has it with all defaults filled in.
    for candidate in domain.values:
        if override(space.base, {section: candidate}).to_dict()[section] == value:
            return candidate
    return None
