"""A sweep space: YAML with domains by dotted name → points, each a set of overrides of a base."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from ray import tune
from ray.tune.search.variant_generator import generate_variants

from distsparse.config import COMPONENTS, NOT_IDENTITY, SECTIONS, RunConfig, keywords, override, parse
from distsparse.registry import suggestion

Point = dict[str, Any]

SEARCHES = ("random", "grid")
_KEYS = ("study", "base", "space", "search", "num_samples", "search_seed", "seeds", "max_concurrent")


@dataclass(frozen=True)
class Domain:
    """The values that one dotted name may take."""

    path: str
    kind: str
    values: tuple[Any, ...] = ()
    """of choice and grid"""
    bounds: tuple[float, ...] = ()
    """low, high (and step q for quniform); high is exclusive for randint"""

    def probes(self) -> list[Any]:
        """Return values that must be valid if the domain is: all of a list, the ends of a range."""
        if self.values:
            return list(self.values)
        low, high = self.bounds[:2]
        match self.kind:
            case "randint":
                return [low, high - 1]
            case "quniform":
                return [low, high]
            case _:  # a whole number's field takes no float
                return [float(low), float(high)]

    def to_tune(self) -> Any:
        """Return Ray Tune's domain; of a list, the positions, so that values may be anything."""
        match self.kind:
            case "grid":
                return tune.grid_search(list(range(len(self.values))))
            case "choice":
                return tune.choice(list(range(len(self.values))))
            case "uniform":
                return tune.uniform(*self.bounds)
            case "loguniform":
                return tune.loguniform(*self.bounds)
            case "quniform":
                return tune.quniform(*self.bounds)
            case _:
                return tune.randint(*(int(bound) for bound in self.bounds))

    def value(self, sampled: Any) -> Any:
        """Return the plain value of what Tune sampled."""
        if self.values:
            return self.values[sampled]
        if self.kind == "randint":
            return int(sampled)
        if self.kind == "quniform":
            # Tune rounds to a multiple of q in binary: 0.30000000000000004.
            rounded = float(f"{sampled:.12g}")
            return int(rounded) if all(isinstance(bound, int) for bound in self.bounds) else rounded
        return float(sampled)


@dataclass(frozen=True)
class Space:
    """What a sweep runs over."""

    base: RunConfig
    domains: tuple[Domain, ...]
    search: Literal["random", "grid"]
    num_samples: int
    search_seed: int
    seeds: tuple[int, ...]
    max_concurrent: int | None

    def with_samples(self, num_samples: int) -> Space:
        """Return the space with another number of random samples.

        Raises:
            ValueError: the search is a grid, or the number is not positive.
        """
        if self.search == "grid":
            raise ValueError("--trials: a grid has as many trials as it has points; use search: random")
        return replace(self, num_samples=_positive("num_samples", num_samples))

    def configs(self) -> list[RunConfig]:
        """Return the configuration of every trial: each point with each seed; no two are equal.

        Where the space chooses a component's name, a keyword's domain is of those components that take it.
        Random sampling leaves out points that it drew before; a space with fewer points than samples gives
        all that were found.

        Raises:
            ValueError: a combination of values is not valid.
        """
        chosen: dict[str, RunConfig] = {}
        target = self.num_samples * math.prod(len(d.values) for d in self.domains if d.kind == "grid")
        for point in self._points():
            if len(chosen) == target and self.search == "random":
                break
            config = override(self.base, _applicable(point))
            chosen.setdefault(config.key, config)
        return [override(config, {"seed": seed}) for config in chosen.values() for seed in self.seeds]

    def _points(self) -> Iterator[Point]:
        spec = {domain.path: domain.to_tune() for domain in self.domains}
        by_path = {domain.path: domain for domain in self.domains}
        random_state = np.random.RandomState(self.search_seed)
        # Draws beyond the number asked for make up for repetitions.
        rounds = 1 if self.search == "grid" else self.num_samples * 20
        for _ in range(rounds):
            for _, sampled in generate_variants(
                dict(spec), constant_grid_search=True, random_state=random_state
            ):
                yield {path: by_path[path].value(value) for path, value in sampled.items()}


def parse_space(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Space:
    """Return a checked space from its YAML values.

    Args:
        values: ``study``, ``base`` (a run's configuration), ``space`` (dotted name → ``{kind: arguments}``),
            ``search`` (random or grid), ``num_samples``, ``search_seed``, ``seeds``, ``max_concurrent``.
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
    search = values.get("search", "random")
    if search not in SEARCHES:
        raise ValueError(f"search = {search!r}: allowed: {', '.join(SEARCHES)}")
    domains = tuple(
        _domain(path, spec, search) for path, spec in _mapping("space", values.get("space")).items()
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
        if domain.path.partition(".")[0] in NOT_IDENTITY:
            raise ValueError(f"space.{domain.path}: makes no other trial; set it under base")
    space = Space(
        base=base,
        domains=domains,
        search=search,
        num_samples=_positive("num_samples", values.get("num_samples", 1)),
        search_seed=_positive("search_seed", values.get("search_seed", 0), least=0),
        seeds=tuple(seeds),
        max_concurrent=(
            None
            if values.get("max_concurrent") is None
            else _positive("max_concurrent", values["max_concurrent"])
        ),
    )
    for seed in seeds:
        override(base, {"seed": seed})
    _probe(space)
    return space


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
    return _applicable(point)


def _applicable(point: Point) -> Point:
    """Return a point without the keywords that its component lacks: they are those of others in the space."""

    def applies(path: str) -> bool:
        kind, _, keyword = path.partition(".")
        name = point.get(f"{kind}.name")
        return name is None or kind not in COMPONENTS or keyword in ("name", *keywords(kind, name))

    return {path: value for path, value in point.items() if applies(path)}


def _domain(path: Any, spec: Any, search: str) -> Domain:
    where = f"space.{path}"
    kinds = ("choice", "grid", "uniform", "loguniform", "quniform", "randint")
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise ValueError(f"{where} = {spec!r}: must be one of {', '.join(kinds)} with its arguments")
    kind, arguments = next(iter(spec.items()))
    if kind not in kinds:
        raise ValueError(
            f"{where}: unknown domain {kind!r}{suggestion(str(kind), list(kinds))}: "
            f"allowed: {', '.join(kinds)}"
        )
    if not isinstance(arguments, list) or not arguments:
        raise ValueError(f"{where}.{kind} = {arguments!r}: must be a list that is not empty")
    if kind in ("choice", "grid"):
        if len({json.dumps(a, sort_keys=True, default=str) for a in arguments}) != len(arguments):
            raise ValueError(f"{where}.{kind} = {arguments!r}: a value appears twice")
        # In a grid search every list is a grid.
        return Domain(str(path), "grid" if search == "grid" else kind, values=tuple(arguments))
    if search == "grid":
        raise ValueError(f"{where}.{kind}: a grid search takes choice and grid only; use search: random")
    return Domain(str(path), kind, bounds=_bounds(f"{where}.{kind}", kind, arguments))


def _bounds(where: str, kind: str, arguments: Sequence[Any]) -> tuple[float, ...]:
    expected = 3 if kind == "quniform" else 2
    numbers = [a for a in arguments if isinstance(a, (int, float)) and not isinstance(a, bool)]
    if len(arguments) != expected or len(numbers) != expected:
        names = "[low, high, step]" if expected == 3 else "[low, high]"
        raise ValueError(f"{where} = {list(arguments)!r}: must be {names}, as numbers")
    low, high = numbers[:2]
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{where} = {list(arguments)!r}: low must be less than high")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"{where} = {list(arguments)!r}: low must be greater than 0")
    if kind == "quniform":
        if numbers[2] <= 0:
            raise ValueError(f"{where} = {list(arguments)!r}: the step must be greater than 0")
        if any(abs(bound / numbers[2] - round(bound / numbers[2])) > 1e-6 for bound in (low, high)):
            raise ValueError(f"{where} = {list(arguments)!r}: low and high must be multiples of the step")
    if kind == "randint" and not all(isinstance(n, int) for n in numbers):
        raise ValueError(f"{where} = {list(arguments)!r}: must be whole numbers; high is not included")
    return tuple(numbers)


def _mapping(where: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{where} = {value!r}: must map dotted names to domains, at least one")
    return value


def _positive(where: str, value: Any, *, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{where} = {value!r}: must be a whole number of at least {least}")
    return value
