"""What the user sees of a sweep: each trial as it ends, and between them how it stands and what was found."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from distsparse import results
from distsparse.config import RunConfig
from distsparse.sweep.agenda import Agenda
from distsparse.train.history import Row
from distsparse.train.progress import Progress

TERMINAL_EVERY_S = 1.0
LOG_EVERY_S = 60.0
FRONT_LINES = 8


class Live:
    """A bar with the state and the Pareto front below it on a terminal; lines in a log file.

    Args:
        agenda: of the sweep.
        progress: the bar over its trials.
        objectives: column → ``max`` or ``min``, of the front.
        varying: dotted names that tell trials apart.
    """

    def __init__(
        self, agenda: Agenda, progress: Progress, objectives: Mapping[str, str], varying: Sequence[str]
    ) -> None:
        self.line = progress.line
        self._agenda, self._progress = agenda, progress
        self._objectives, self._varying = objectives, varying
        self._num_before = self._num_shown = len(agenda.rows)
        self._begun = self._shown = self._logged = time.monotonic()

    def ended(self, config: RunConfig, row: Row) -> None:
        """Show a trial that is over."""
        self._advance()
        count = f"{len(self._agenda.rows)}/{self._agenda.num_trials}"
        self.line(f"{count:>7}  {config.key}  {outcome(row)}  {label(config, self._varying)}")

    def _advance(self) -> None:
        """Bring the bar up to the agenda, which also finds trials that another sweep completed."""
        self._progress.advance(len(self._agenda.rows) - self._num_shown)
        self._num_shown = len(self._agenda.rows)

    def tick(self) -> None:
        """Bring what stands on the terminal up to date; once in a while, say it in the log."""
        now = time.monotonic()
        if self._progress.on_terminal and now - self._shown >= TERMINAL_EVERY_S:
            self._shown = now
            self._advance()
            lines = front_lines(self._agenda.rows.values(), self._objectives)
            self._progress.below([self._state(), *lines])
        if not self._progress.on_terminal and now - self._logged >= LOG_EVERY_S:
            self._logged = now
            self.line(f"{self._state()}, {self._time_left(now)}")
            for line in front_lines(self._agenda.rows.values(), self._objectives):
                self.line(line)

    def _state(self) -> str:
        statuses = [row["status"] for row in self._agenda.rows.values()]
        counts = {name: statuses.count(name) for name in ("completed", "stopped", "failed")}
        parts = [f"{count} {name}" for name, count in counts.items() if count or name != "stopped"]
        return ", ".join([*parts, f"{len(self._agenda.running)} running"])

    def _time_left(self, now: float) -> str:
        num_ended = len(self._agenda.rows) - self._num_before
        if not num_ended:
            return "time left not known yet"
        left = self._agenda.num_trials - len(self._agenda.rows)
        return f"about {duration((now - self._begun) / num_ended * left)} left"


def outcome(row: Row) -> str:
    """Return in a few words how a trial ended."""
    if row["status"] == "stopped":
        return f"stopped at step {row['steps']}  accuracy {row['accuracy']:.4f}"
    if row["status"] != "completed":
        return f"{row['status']}: {row['error']}"
    return f"accuracy {row['accuracy']:.4f}  sparsity {row['sparsity']:.4f}  {row['wall_s']:.1f} s"


def front_lines(rows: Collection[Row], objectives: Mapping[str, str]) -> list[str]:
    """Return the Pareto front of completed trials, a line each, best in the first objective first."""
    complete = [row for row in rows if all(row.get(name) is not None for name in objectives)]
    complete = [row for row in complete if row["status"] == "completed"]
    if not complete:
        return []
    frame = pd.DataFrame(
        [{"trial": row["trial"], **{name: row[name] for name in objectives}} for row in complete]
    )
    front = results.pareto_front(
        frame,
        maximize=[name for name, direction in objectives.items() if direction == "max"],
        minimize=[name for name, direction in objectives.items() if direction == "min"],
    )
    first, direction = next(iter(objectives.items()))
    front = front.sort_values(first, ascending=direction == "min").drop_duplicates(list(objectives))
    lines = [
        f"  front  {row['trial']}  " + "  ".join(f"{name} {row[name]:.4g}" for name in objectives)
        for row in front.head(FRONT_LINES).to_dict("records")
    ]
    more = len(front) - len(lines)
    return [*lines, f"  front  and {more} more"] if more > 0 else lines


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def varying(configs: Sequence[RunConfig]) -> list[str]:
    """Return the names of the values that set some trials apart from others."""
    flats = [config.flat() for config in configs]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    # A parameter that some methods do not have differs only where it has two values.
    return [name for name in names if len({str(flat[name]) for flat in flats if name in flat}) > 1]


def label(config: RunConfig, names: Sequence[str]) -> str:
    """Return some of a configuration's values in one line."""
    flat = config.flat()
    return " ".join(
        f"{name}={flat[name]:.4g}" if isinstance(flat[name], float) else f"{name}={flat[name]}"
        for name in names
        if name in flat
    )
