"""From a run's rows to what trackers take: numbers by name, at steps."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distsparse.config import RunConfig

Row = Mapping[str, Any]
Values = dict[str, float]
Record = tuple[int, Values]
"""steps done, and a row's numbers"""


@dataclass(frozen=True)
class Outcome:
    """How a run ended, or was left."""

    status: str
    """completed, failed, stopped (by a scheduler), interrupted, or trained: not yet ended by the driver"""
    error: str | None
    final: Values

    @property
    def is_good(self) -> bool:
        """Whether nothing went wrong."""
        return self.status in ("completed", "stopped", "trained")

    @property
    def is_last(self) -> bool:
        """Whether it stands, and is not a worker's that leaves it to the driver to end the run."""
        return self.status != "trained" and not (self.status == "failed" and self.error is None)


@dataclass(frozen=True)
class Identity:
    """Which run of a tracker is this trial's, in any process."""

    config: RunConfig
    root: Path

    @property
    def id(self) -> str:
        """The same for a trial in one results' folder, and another in another folder."""
        study = hashlib.blake2b(str(self.root / self.config.study).encode(), digest_size=4).hexdigest()
        return f"{self.config.key}-{study}"

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.root / self.config.study

    @property
    def labels(self) -> dict[str, str]:
        """What a user looks a trial up by."""
        config = self.config
        return {
            "study": config.study,
            "trial": config.key,
            "method": config.method.name,
            "seed": str(config.seed),
        }


class Tracker(Protocol):
    """One run in one experiment tracker. Its methods are called from one thread, in which it was made."""

    num_records: int
    """that it holds, also from earlier processes"""

    def log(self, records: Sequence[Record]) -> None:
        """Take the records that follow those it holds."""

    def end(self, outcome: Outcome) -> None:
        """Send all that was logged, and the outcome."""


def numbers(row: Row) -> Values:
    """Return what in a row is a number."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def records(steps: Sequence[Row], rewires: Sequence[Row]) -> list[Record]:
    """Return rows of the ``steps`` and ``rewires`` tables in the order in which they came.

    A run that is resumed gives the same records in the same order, so that their number says where it is.
    """
    rows = [(row["step"], numbers({k: v for k, v in row.items() if k != "step"})) for row in steps]
    # A step's row is made at its end, and the update of the same number at the beginning of the next.
    return sorted([*rows, *_mask_updates(rewires)], key=lambda record: record[0])


def _mask_updates(rewires: Sequence[Row]) -> Iterator[Record]:
    """Yield each mask update's totals and the layers' densities after it."""
    update: dict[str, Row] = {}
    for row in rewires:
        if update and (row["layer"] in update or row["step"] != next(iter(update.values()))["step"]):
            yield _mask_update(list(update.values()))
            update = {}
        update[row["layer"]] = row
    if update:
        yield _mask_update(list(update.values()))


def _mask_update(layers: Sequence[Row]) -> Record:
    step = layers[0]["step"]
    values = {f"density/{row['layer']}": row["nnz"] / row["num_weights"] for row in layers}
    if step > 0:  # at 0 the masks are made, and nothing is exchanged
        dropped, grown = (sum(row[name] for row in layers) for name in ("num_dropped", "num_grown"))
        before = sum(row["nnz"] for row in layers) + dropped - grown
        values["mask_update/num_dropped"] = dropped
        values["mask_update/num_grown"] = grown
        values["mask_update/fraction"] = dropped / before if before else 0.0
    return step, values


def outcome(row: Row) -> Outcome:
    """Return the outcome in a row of the ``trials`` table, or in a part of it."""
    # Columns with a dot are the configuration's.
    final = {name: value for name, value in numbers(row).items() if "." not in name and name != "seed"}
    return Outcome(str(row["status"]), row.get("error"), final)
