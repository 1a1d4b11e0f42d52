"""A domain: the values that one dotted name of a space may take."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import tune

from distsparse.registry import suggestion

if TYPE_CHECKING:
    import optuna

KINDS = ("choice", "grid", "uniform", "loguniform", "quniform", "randint")


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

    def at(self, position: float) -> Any:
        """Return the plain value at a position in [0, 1): equal shares of positions have equal chances."""
        if self.values:
            return self.values[int(position * len(self.values))]
        low, high = self.bounds[:2]
        match self.kind:
            case "randint":
                return self.value(int(low) + int(position * (high - low)))
            case "quniform":
                step = self.bounds[2]
                return self.value(low + step * int(position * (round((high - low) / step) + 1)))
            case "loguniform":
                return self.value(low * (high / low) ** position)
            case _:
                return self.value(low + position * (high - low))

    def suggest(self, trial: optuna.trial.Trial) -> Any:
        """Return the plain value that an Optuna trial chooses."""
        match self.kind:
            case "grid" | "choice":
                sampled: Any = trial.suggest_categorical(self.path, list(range(len(self.values))))
            case "randint":
                sampled = trial.suggest_int(self.path, int(self.bounds[0]), int(self.bounds[1]) - 1)
            case "quniform":
                low, high, step = self.bounds
                sampled = trial.suggest_float(self.path, low, high, step=step)
            case _:
                low, high = self.bounds
                sampled = trial.suggest_float(self.path, low, high, log=self.kind == "loguniform")
        return self.value(sampled)

    def holds(self, value: Any) -> bool:
        """Return whether a plain value is one of the domain's."""
        if self.values:
            return value in self.values
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        low, high = self.bounds[:2]
        if self.kind == "randint":
            return isinstance(value, int) and low <= value < high
        return low <= value <= high

    def nearest(self, number: float) -> Any:
        """Return the value of a range that is closest to a number."""
        low, high = self.bounds[:2]
        if self.kind == "randint":
            return min(max(round(number), int(low)), int(high) - 1)
        number = min(max(number, low), high)
        return self.value(
            round(number / self.bounds[2]) * self.bounds[2] if self.kind == "quniform" else number
        )

    def to_param(self, value: Any) -> Any:
        """Return what Optuna knows a value of the domain by."""
        return self.values.index(value) if self.values else value

    def value(self, sampled: Any) -> Any:
        """Return the plain value of what Tune or Optuna sampled."""
        if self.values:
            return self.values[sampled]
        if self.kind == "randint":
            return int(sampled)
        if self.kind == "quniform":
            # Tune rounds to a multiple of q in binary: 0.30000000000000004.
            rounded = float(f"{sampled:.12g}")
            return int(rounded) if all(isinstance(bound, int) for bound in self.bounds) else rounded
        return float(sampled)


def parse_domain(path: Any, spec: Any, *, grid: bool) -> Domain:
    """Return the domain of a dotted name from its YAML value, ``{kind: arguments}``.

    ``grid``: every list is a grid, and nothing but lists is allowed.

    Raises:
        ValueError: naming the path, the value and what is allowed.
    """
    where = f"space.{path}"
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise ValueError(f"{where} = {spec!r}: must be one of {', '.join(KINDS)} with its arguments")
    kind, arguments = next(iter(spec.items()))
    if kind not in KINDS:
        raise ValueError(
            f"{where}: unknown domain {kind!r}{suggestion(str(kind), list(KINDS))}: "
            f"allowed: {', '.join(KINDS)}"
        )
    if not isinstance(arguments, list) or not arguments:
        raise ValueError(f"{where}.{kind} = {arguments!r}: must be a list that is not empty")
    if kind in ("choice", "grid"):
        if len({json.dumps(a, sort_keys=True, default=str) for a in arguments}) != len(arguments):
            raise ValueError(f"{where}.{kind} = {arguments!r}: a value appears twice")
        return Domain(str(path), "grid" if grid else kind, values=tuple(arguments))
    if grid:
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
