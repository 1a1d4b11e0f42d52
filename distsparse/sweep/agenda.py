"""What a sweep has still to do: which trial comes next, and what became of each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from distsparse import results
from distsparse.config import RunConfig
from distsparse.sweep.population import Population
from distsparse.sweep.space import replicates
from distsparse.train.history import Row

LOOK_AGAIN_S = 2.0
"""seconds between two looks at a trial that another sweep runs"""


class Search(Protocol):
    """Chooses points of a space; a point is a configuration, and its replicates differ in the seed alone."""

    @property
    def num_points(self) -> int:
        """Points that the search chooses at most."""

    def ask(self) -> RunConfig | None:
        """Return the next point, or None if there is no more."""

    def tell(self, point: RunConfig, rows: Sequence[Row]) -> None:
        """Hear of a point whose replicates are over: their rows in ``trials``, completed or failed."""


class Listed:
    """A search that knows all its points before it begins."""

    def __init__(self, points: Sequence[RunConfig]) -> None:
        self.num_points = len(points)
        self._points = deque(points)

    def ask(self) -> RunConfig | None:
        """Return the next point in order."""
        return self._points.popleft() if self._points else None

    def tell(self, point: RunConfig, rows: Sequence[Row]) -> None:
        """Change nothing."""


@dataclass
class _Point:
    config: RunConfig
    num_open: int
    rows: list[Row] = field(default_factory=list)


class Agenda:
    """The trials of a sweep: waiting, running, and over. Lives in the driver, and nothing of it is saved.

    What completed is known by its row, also what completed before or in another sweep of the same study.

    Args:
        search: chooses the points.
        seeds: of each point's replicates.
        root: the results' folder.
        max_trials: trials to begin at most; None for all.
        stopped_is_over: what a scheduler stopped early is not begun again.
        populate: makes a population of the points' trials of one seed, which train part by part; None where
            each trial trains for itself.
    """

    def __init__(
        self,
        search: Search,
        seeds: Sequence[int],
        root: Path,
        *,
        max_trials: int | None = None,
        stopped_is_over: bool = False,
        populate: Callable[[Sequence[RunConfig]], Population] | None = None,
    ) -> None:
        self.num_trials = search.num_points * len(seeds)
        self.running: dict[str, RunConfig] = {}
        self.rows: dict[str, Row] = {}
        """what is not null of the trials that are over, by key, as they ended or were found"""
        self.configs: dict[str, RunConfig] = {}
        """of the trials that are over, by key"""
        self.num_begun = 0
        self._max_trials = max_trials
        self._over_statuses = {"completed", "stopped"} if stopped_is_over else {"completed"}
        self._search, self._seeds, self._root = search, seeds, root
        self._points: dict[str, _Point] = {}
        self._waiting: deque[RunConfig] = deque()
        self._elsewhere: deque[tuple[float, RunConfig]] = deque()
        self._populate = populate
        self._populations: dict[str, Population] = {}
        """by the key of each member"""

    def settle(self) -> list[RunConfig]:
        """Ask a search that does not adapt for all points; return the trials that have not completed."""
        while (point := self._search.ask()) is not None:
            self._enter(point)
        entered, self._waiting = self._waiting, deque()
        found = [(config, self._found(config)) for config in entered]
        for config, row in found:
            if row:
                self._over(config, row)
        left = [config for config, row in found if not row]
        if self._populate is None:
            self._waiting.extend(left)
            return left
        for seed in self._seeds:
            population = self._populate([config for config in entered if config.seed == seed])
            self._populations |= {config.key: population for config in entered if config.seed == seed}
            self._waiting.extend(population.begin(self.rows.keys()))
        return left

    @property
    def over(self) -> bool:
        """Whether no trial waits or runs, here or in another sweep, and the search has no more points."""
        self._fill()
        trains = any(population.trains for population in self._populations.values())
        return not (self._waiting or self._elsewhere or self.running or trains)

    @property
    def spent(self) -> bool:
        """Whether as many trials have begun as may, or members of a population were told to stop."""
        halted = any(population.halted for population in self._populations.values())
        return halted or (self._max_trials is not None and self.num_begun >= self._max_trials)

    def part(self, config: RunConfig) -> tuple[int | None, list[Row]]:
        """Return the step that a trial is to stop after, None for its end, and its rows of ``lineage``."""
        population = self._populations.get(config.key)
        return (None, []) if population is None else (population.until(), population.lineage(config.key))

    def news(self) -> Iterator[str]:
        """Yield what populations exchanged since it was last asked for."""
        for population in dict.fromkeys(self._populations.values()):
            yield from population.news
            population.news.clear()

    def next(self) -> RunConfig | None:
        """Return the trial to begin now, which counts as running; None if none can begin now."""
        if self.spent:
            return None
        while self._elsewhere and self._elsewhere[0][0] <= time.monotonic():
            self._waiting.append(self._elsewhere.popleft()[1])
        self._fill()
        if not self._waiting:
            return None
        config = self._waiting.popleft()
        self.running[config.key] = config
        self.num_begun += 1
        return config

    def ended(self, config: RunConfig, row: Row) -> None:
        """Take a running trial's row, completed or failed."""
        del self.running[config.key]
        self._over(config, row)

    def postpone(self, config: RunConfig) -> None:
        """Look at a trial again later: another process runs it."""
        del self.running[config.key]
        self.num_begun -= 1
        self._elsewhere.append((time.monotonic() + LOOK_AGAIN_S, config))

    def interrupted(self, config: RunConfig) -> None:
        """Leave a trial, with its checkpoint, to the next sweep, or to its population."""
        del self.running[config.key]
        if population := self._populations.get(config.key):
            self._waiting.extend(population.ended_part(config.key))

    def _fill(self) -> None:
        """Ask for points until a trial waits that has not completed, or there are no more points."""
        while True:
            while self._waiting and (row := self._found(self._waiting[0])):
                self._over(self._waiting.popleft(), row)
            if self._waiting or (point := self._search.ask()) is None:
                return
            self._enter(point)

    def _found(self, config: RunConfig) -> Row | None:
        """Return a trial's row if it is over, here or in another sweep, now or before."""
        rows = results.read_trial(self._root, study=config.study, trial=config.key)
        return rows[0] if rows and rows[0]["status"] in self._over_statuses else None

    def _enter(self, point: RunConfig) -> None:
        shared = _Point(point, len(self._seeds))
        for config in replicates(point, self._seeds):
            self._points[config.key] = shared
            self._waiting.append(config)

    def _over(self, config: RunConfig, row: Row) -> None:
        # A row has a column for every parameter there is, and a study may have thousands of rows.
        row = {name: value for name, value in row.items() if value is not None and name != "config"}
        self.rows[config.key] = row
        self.configs[config.key] = config
        point = self._points.pop(config.key)
        point.rows.append(row)
        point.num_open -= 1
        if not point.num_open:
            self._search.tell(point.config, point.rows)
        if population := self._populations.get(config.key):
            self._waiting.extend(population.left(config.key))
