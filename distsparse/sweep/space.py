"""A sweep space: YAML with domains by dotted name → points, each a set of overrides of a base."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from ray.tune.search.variant_generator import generate_variants
from scipy.stats import qmc

from distsparse.config import (
    COMPONENTS,
    IN_A_POPULATION,
    NOT_IDENTITY,
    SECTIONS,
    RunConfig,
    keywords,
    override,
    parse,
)
from distsparse.registry import suggestion
from distsparse.sweep.asha import Asha, parse_asha
from distsparse.sweep.domain import Domain, parse_domain
from distsparse.sweep.goal import Goal, parse_goal
from distsparse.sweep.pbt import Pbt, check_domains, parse_pbt

Point = dict[str, Any]

LISTED = ("random", "grid", "sobol")
ADAPTIVE = ("tpe", "gp", "nsga2", "nsga3")
SEARCHES = (*LISTED, *ADAPTIVE)
_KEYS = (
    "study",
    "base",
    "space",
    "search",
    "num_samples",
    "search_seed",
    "seeds",
    "max_concurrent",
    "max_trials",
    "time_budget_s",
    "worker_pool",
    "asha",
    "pbt",
    "objectives",
    "constraints",
    "warm_start",
)


@dataclass(frozen=True)
class Space:
    """What a sweep runs over."""

    base: RunConfig
    domains: tuple[Domain, ...]
    search: str
    """one of SEARCHES"""
    num_samples: int
    search_seed: int
    seeds: tuple[int, ...]
    max_concurrent: int | None
    """trials side by side; None for as many as the cluster holds"""
    max_trials: int | None
    """trials that one command begins"""
    time_budget_s: float | None
    """seconds after which one command ends"""
    worker_pool: bool
    """whether data-parallel trials share workers that stay; else each has a Ray Train run of its own"""
    asha: Asha | None
    """ends trials that are behind the others"""
    pbt: Pbt | None
    """makes trials go on from better ones, with other settings"""
    goal: Goal | None
    """of an adaptive search"""
    warm_start: str | None
    """folder of an earlier study that an adaptive search learns from"""

    def with_budget(self, *, time_budget_s: float | None, max_trials: int | None) -> Space:
        """Return the space with other budgets; None leaves what it has.

        Raises:
            ValueError: a budget is not positive.
        """
        return replace(
            self,
            time_budget_s=_seconds("--time-budget-s", time_budget_s) or self.time_budget_s,
            max_trials=self._trials_at_most(max_trials) if max_trials is not None else self.max_trials,
        )

    def _trials_at_most(self, number: int) -> int:
        if self.pbt is not None:
            raise ValueError(f"--max-trials {number}: the trials of a population train together, all of them")
        return _positive("--max-trials", number)

    def with_samples(self, num_samples: int) -> Space:
        """Return the space with another number of random samples.

        Raises:
            ValueError: the search is a grid, or the number is not positive.
        """
        if self.search == "grid":
            raise ValueError("--trials: a grid has as many trials as it has points; use search: random")
        return replace(self, num_samples=_positive("num_samples", num_samples))

    @property
    def adaptive(self) -> bool:
        """Whether each point is chosen by what the points before it gave."""
        return self.search in ADAPTIVE

    def points(self) -> list[RunConfig]:
        """Return the configuration of every point, with the base's seed; no two are equal.

        Where the space chooses a component's name, a keyword's domain is of those components that take it.
        Sampling leaves out points that it drew before; a space with fewer points than samples gives all that
        were found. Of an adaptive search, random points of its space. With ``pbt``, what the members of the
        population begin with.

        Raises:
            ValueError: a combination of values is not valid.
        """
        chosen: dict[str, RunConfig] = {}
        target = self.num_samples * math.prod(len(d.values) for d in self.domains if d.kind == "grid")
        for point in self._points():
            if len(chosen) == target and self.search != "grid":
                break
            config = override(self.base, applicable(point))
            chosen.setdefault(config.key, config)
        return list(chosen.values()) if self.pbt is None else self._population(self.pbt, chosen)

    def _population(self, rule: Pbt, chosen: Mapping[str, RunConfig]) -> list[RunConfig]:
        """Return points as members of one population, known by all that it begins with."""
        whole = json.dumps([asdict(rule), self.search_seed, list(map(asdict, self.domains)), *chosen])
        name = hashlib.blake2b(whole.encode(), digest_size=6).hexdigest()
        return [
            override(config, {"population": {"id": name, "member": member}})
            for member, config in enumerate(chosen.values())
        ]

    def corners(self) -> list[RunConfig]:
        """Return the base with each end of each domain, the others at their first value."""
        return [
            override(self.base, _probe_point(self, domain, value))
            for domain in self.domains
            for value in domain.probes()
        ]

    def configs(self) -> list[RunConfig]:
        """Return the configuration of every trial: each point with each seed; no two are equal."""
        return [config for point in self.points() for config in replicates(point, self.seeds)]

    def _points(self) -> Iterator[Point]:
        match self.search:
            case "grid":
                return self._tune_points(rounds=1)
            case "sobol":
                return self._sobol_points()
            case _:
                # Draws beyond the number asked for make up for repetitions.
                return self._tune_points(rounds=self.num_samples * 20)

    def _tune_points(self, *, rounds: int) -> Iterator[Point]:
        spec = {domain.path: domain.to_tune() for domain in self.domains}
        by_path = {domain.path: domain for domain in self.domains}
        random_state = np.random.RandomState(self.search_seed)
        for _ in range(rounds):
            for _, sampled in generate_variants(
                dict(spec), constant_grid_search=True, random_state=random_state
            ):
                yield {path: by_path[path].value(value) for path, value in sampled.items()}

    def _sobol_points(self) -> Iterator[Point]:
        """Yield a scrambled Sobol sequence over what is no grid, each point with each value of the grids."""
        sampled = [domain for domain in self.domains if domain.kind != "grid"]
        grids = [domain for domain in self.domains if domain.kind == "grid"]
        sequence = qmc.Sobol(len(sampled), rng=self.search_seed) if sampled else None
        for _ in range(self.num_samples * 20):
            positions = sequence.random()[0] if sequence else ()
            point = {d.path: d.at(float(u)) for d, u in zip(sampled, positions, strict=True)}
            for values in itertools.product(*(domain.values for domain in grids)):
                yield point | {d.path: value for d, value in zip(grids, values, strict=True)}


def replicates(point: RunConfig, seeds: Sequence[int]) -> list[RunConfig]:
    """Return a point's trials, one for each seed."""
    return [override(point, {"seed": seed}) for seed in seeds]


def parse_space(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Space:
    """Return a checked space from its YAML values.

    Args:
        values: ``study``, ``base`` (a run's configuration), ``space`` (dotted name → ``{kind: arguments}``),
            ``search`` (one of :data:`SEARCHES`), ``num_samples``, ``search_seed``, ``seeds``,
            ``max_concurrent``, ``max_trials`` and ``time_budget_s`` (both of one command, not of the study);
            ``worker_pool``, ``asha``, ``pbt``; for an adaptive search also ``objectives``, ``constraints``
            and ``warm_start``.
        overrides: dotted name → value, applied to the base.

    Raises:
        ValueError: naming the path, the value and what is allowed; every value of a list and both ends of a
            range are tried on the base.
    """
    for name in values:
        if name in COMPONENTS or name in SECTIONS:
            raise ValueError(f"key {name!r}: belongs below base; a run's file is for `distsparse train`")
        if name not in _KEYS:
            raise ValueError(
                f"unknown key {name!r}{suggestion(str(name), list(_KEYS))}: allowed: {', '.join(_KEYS)}"
            )
    base_values = values.get("base", {})
    if not isinstance(base_values, Mapping):
        raise ValueError(f"base = {base_values!r}: must be a mapping, a run's configuration")
    base_values = dict(base_values)
    if "study" in values:
        base_values["study"] = values["study"]
    _check_overrides(overrides or {}, values)
    base = override(parse(base_values), overrides or {})
    if base.population.id is not None:
        raise ValueError(f"base.population.id = {base.population.id!r}: {IN_A_POPULATION}")
    search = values.get("search", "random")
    if search not in SEARCHES:
        raise ValueError(f"search = {search!r}: allowed: {', '.join(SEARCHES)}")
    domains = tuple(
        parse_domain(path, spec, grid=search == "grid")
        for path, spec in _mapping("space", values.get("space")).items()
    )
    seeds = values.get("seeds", [base.seed])
    if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) != len(seeds):
        raise ValueError(f"seeds = {seeds!r}: must be a list of different whole numbers")
    if any(domain.path == "seed" for domain in domains):
        raise ValueError("space.seed: seeds are replicates of one point; list them under seeds")
    for domain in domains:
        # Tune reserves the base's CPUs for each trial: one that wants more would wait for ever.
        if domain.path.partition(".")[0] in ("study", "launch"):
            raise ValueError(f"space.{domain.path}: is one for all trials; set it under base")
        if domain.path.partition(".")[0] == "population":
            raise ValueError(f"space.{domain.path}: {IN_A_POPULATION}")
        if domain.path.partition(".")[0] in NOT_IDENTITY:
            raise ValueError(f"space.{domain.path}: makes no other trial; set it under base")
    space = Space(
        base=base,
        domains=domains,
        search=search,
        num_samples=_positive("num_samples", values.get("num_samples", 1)),
        search_seed=_positive("search_seed", values.get("search_seed", 0), least=0),
        seeds=tuple(seeds),
        max_concurrent=_positive_or_none("max_concurrent", values),
        max_trials=_positive_or_none("max_trials", values),
        time_budget_s=_seconds("time_budget_s", values.get("time_budget_s")),
        worker_pool=_flag("worker_pool", values.get("worker_pool", True)),
        asha=_asha(values, base),
        pbt=_pbt(values, base, domains),
        **_adaptive(search, values, base),
    )
    for seed in seeds:
        override(base, {"seed": seed})
    _probe(space)
    return space


def _asha(values: Mapping[str, Any], base: RunConfig) -> Asha | None:
    asha = parse_asha(values.get("asha"))
    if asha is not None and base.launch.workers > 0:
        raise ValueError("asha: ends only trials of one process; launch.workers must be 0")
    if asha is not None and (len(values.get("objectives", ())) > 1 or values.get("constraints")):
        raise ValueError("asha: compares by one metric; it serves no several objectives, and no constraints")
    return asha


def _pbt(values: Mapping[str, Any], base: RunConfig, domains: Sequence[Domain]) -> Pbt | None:
    pbt = parse_pbt(values.get("pbt"))
    if pbt is None:
        return None
    search = values.get("search", "random")
    if search in ADAPTIVE:
        raise ValueError(f"pbt: search = {search!r} chooses by results, too; allowed: {', '.join(LISTED)}")
    for name in ("asha", "max_trials"):
        if values.get(name) is not None:
            raise ValueError(f"pbt: the trials of a population train together, all of them; leave out {name}")
    own_run = values.get("worker_pool") is False or base.launch.min_workers is not None
    if base.launch.workers > 0 and own_run:
        raise ValueError(
            "pbt: trains on one process a trial, or on workers that stay; worker_pool must be true and "
            "launch.min_workers null"
        )
    if pbt.interval % base.train.evaluate_every:
        raise ValueError(
            f"pbt.interval = {pbt.interval}: must be a multiple of train.evaluate_every, "
            f"which is {base.train.evaluate_every}"
        )
    check_domains(domains, base)
    return pbt


def _adaptive(search: str, values: Mapping[str, Any], base: RunConfig) -> dict[str, Any]:
    """Return the fields that only an adaptive search has."""
    if search not in ADAPTIVE:
        for name in ("objectives", "constraints", "warm_start"):
            if name in values:
                raise ValueError(
                    f"{name}: search = {search!r} does not use it; it is for {', '.join(ADAPTIVE)}"
                )
        return {"goal": None, "warm_start": None}
    if "objectives" not in values:
        raise ValueError(
            f"objectives: search = {search!r} needs columns of trials to optimize, such as "
            "{validation_accuracy: max, sparsity: max}"
        )
    goal = parse_goal(values["objectives"], values.get("constraints", {}))
    if goal.measures_latency and not base.latency.measure:
        raise ValueError("latency.measure = False: the objectives or constraints read a latency")
    warm_start = values.get("warm_start")
    if warm_start is not None and not isinstance(warm_start, str):
        raise ValueError(f"warm_start = {warm_start!r}: must be the folder of an earlier study")
    return {"goal": goal, "warm_start": warm_start}


def _check_overrides(overrides: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse to set what the space itself chooses: it would have no effect."""
    domains = values.get("space")
    for path in overrides:
        for domain in domains if isinstance(domains, Mapping) else ():
            if f"{path}.".startswith(f"{domain}.") or f"{domain}.".startswith(f"{path}."):
                raise ValueError(f"--set {path}: the space chooses {domain}; change it there")
        if path == "seed" and "seeds" in values:
            raise ValueError("--set seed: the space lists its seeds; change them there")


def _probe(space: Space) -> None:
    """Try each domain's values with the first value of every other one: paths and ranges fail here."""
    for domain in space.domains:
        for value in domain.probes():
            try:
                override(space.base, _probe_point(space, domain, value))
            except ValueError as error:
                raise ValueError(f"space: {error}") from None


def _probe_point(space: Space, domain: Domain, value: Any) -> Point:
    """Return a value with the first of every other domain; a keyword with the first name that takes it."""
    point = {other.path: other.probes()[0] for other in space.domains} | {domain.path: value}
    kind, _, keyword = domain.path.partition(".")
    names = next((other.values for other in space.domains if other.path == f"{kind}.name"), ())
    if names and keyword != "name":
        takers = [name for name in names if keyword in keywords(kind, name)]
        if not takers:
            return {f"{kind}.name": names[0], domain.path: value}
        point[f"{kind}.name"] = takers[0]
    return applicable(point)


def applicable(point: Point) -> Point:
    """Return a point without the keywords that its component lacks: they are those of others in the space."""
    return {path: value for path, value in point.items() if takes_part(path, point)}


def takes_part(path: str, point: Point) -> bool:
    """Return whether a dotted name means something beside a point's component names."""
    kind, _, keyword = path.partition(".")
    name = point.get(f"{kind}.name")
    return name is None or kind not in COMPONENTS or keyword in ("name", *keywords(kind, name))


def _mapping(where: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{where} = {value!r}: must map dotted names to domains, at least one")
    return value


def _positive(where: str, value: Any, *, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{where} = {value!r}: must be a whole number of at least {least}")
    return value


def _positive_or_none(name: str, values: Mapping[str, Any]) -> int | None:
    return None if values.get(name) is None else _positive(name, values[name])


def _flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where} = {value!r}: must be true or false")
    return value


def _seconds(where: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{where} = {value!r}: must be a number of seconds greater than 0")
    return float(value)
