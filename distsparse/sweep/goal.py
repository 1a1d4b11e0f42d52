"""What a search looks for: columns of ``trials`` to maximize or minimize, and bounds on columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

from distsparse.registry import suggestion
from distsparse.results import TABLES
from distsparse.train.history import Row

Direction = Literal["max", "min"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
COLUMNS = tuple(
    column.name
    for column in TABLES["trials"]
    if (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)) and column.name != "seed"
)


@dataclass(frozen=True)
class Goal:
    """Objectives in order, each ``max`` or ``min``, and the bounds of constraints."""

    objectives: Mapping[str, Direction]
    constraints: Mapping[str, tuple[float | None, float | None]]
    """column → (least, most) that is allowed"""

    @property
    def columns(self) -> set[str]:
        """Every column that the goal reads."""
        return {*self.objectives, *self.constraints}

    @property
    def measures_latency(self) -> bool:
        """Whether a column is a measured latency."""
        return any(name.startswith("latency_") for name in self.columns)

    def means(self, rows: Sequence[Row]) -> dict[str, float] | None:
        """Return each column's mean over the completed replicates of a point; None if one has no value."""
        rows = [row for row in rows if row["status"] != "failed"]
        if not rows or any(row.get(name) is None for row in rows for name in self.columns):
            return None
        return {name: sum(float(row[name]) for row in rows) / len(rows) for name in sorted(self.columns)}

    def violations(self, means: Mapping[str, float]) -> list[float]:
        """Return how far each bound is exceeded; not above zero where it holds."""
        found = []
        for name, (least, most) in self.constraints.items():
            found += [] if least is None else [least - means[name]]
            found += [] if most is None else [means[name] - most]
        return found


def parse_goal(objectives: Any, constraints: Any) -> Goal:
    """Return a goal from its YAML: ``{column: max or min}`` and ``{column: {min: …, max: …}}``.

    Raises:
        ValueError: naming the column, the value and what is allowed.
    """
    if not isinstance(objectives, Mapping) or not objectives:
        raise ValueError(f"objectives = {objectives!r}: must map columns of trials to max or min")
    for name, direction in objectives.items():
        _check_column("objectives", name)
        if direction not in DIRECTIONS:
            raise ValueError(f"objectives.{name} = {direction!r}: allowed: {', '.join(DIRECTIONS)}")
    if not isinstance(constraints, Mapping):
        raise ValueError(f"constraints = {constraints!r}: must map columns of trials to bounds")
    return Goal(dict(objectives), {name: _bounds(name, value) for name, value in constraints.items()})


def _check_column(where: str, name: Any) -> None:
    if name not in COLUMNS:
        raise ValueError(
            f"{where}.{name}: no numeric column of trials{suggestion(str(name), list(COLUMNS))}; "
            "docs/results.md lists them"
        )


def _bounds(name: Any, value: Any) -> tuple[float | None, float | None]:
    _check_column("constraints", name)
    numbers = value.values() if isinstance(value, Mapping) else ()
    if (
        not isinstance(value, Mapping)
        or not value
        or not set(value) <= {"min", "max"}
        or not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers)
    ):
        raise ValueError(f"constraints.{name} = {value!r}: must be {{min: …, max: …}} or one of them")
    return value.get("min"), value.get("max")
