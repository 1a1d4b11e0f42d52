"""Which trial comes next: replicates, what completed before, what runs elsewhere, and the trial budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from parts import TINY

from distsparse.config import RunConfig, override
from distsparse.launch.record import record_failed, write_table
from distsparse.sweep import agenda as module
from distsparse.sweep.agenda import Agenda, Listed
from distsparse.train import History
from distsparse.train.history import Row

POINTS = [override(TINY, {"method.alpha": alpha, "study": "s"}) for alpha in (0.1, 0.2, 0.3)]


class Told(Listed):
    def __init__(self, points: Sequence[RunConfig]) -> None:
        super().__init__(points)
        self.told: list[tuple[str, list[str]]] = []

    def tell(self, point: RunConfig, rows: Sequence[Row]) -> None:
        self.told.append((point.key, [row["status"] for row in rows]))


def complete(root: Path, config: RunConfig) -> Row:
    row = record_failed(root, config, History(), "") | {"status": "completed", "error": None}
    write_table(root, config, "trials", [row])
    return row


def drain(agenda: Agenda) -> list[tuple[float, int]]:
    begun = []
    while (config := agenda.next()) is not None:
        begun.append((config.method.params["alpha"], config.seed))
    return begun


def test_each_point_with_each_seed(tmp_path: Path) -> None:
    agenda = Agenda(Listed(POINTS), [0, 5], tmp_path)
    assert agenda.num_trials == 6
    assert drain(agenda) == [(alpha, seed) for alpha in (0.1, 0.2, 0.3) for seed in (0, 5)]
    assert len(agenda.running) == 6
    assert not agenda.over


def test_what_completed_is_not_begun(tmp_path: Path) -> None:
    """Neither before the sweep nor, by another one, while it goes on; what failed is."""
    agenda = Agenda(Listed(POINTS), [0], tmp_path)
    complete(tmp_path, POINTS[0])
    record_failed(tmp_path, POINTS[2], History(), "broken")
    assert agenda.next() == POINTS[1]
    complete(tmp_path, POINTS[2])
    assert agenda.next() is None
    assert set(agenda.rows) == {POINTS[0].key, POINTS[2].key}
    agenda.ended(POINTS[1], complete(tmp_path, POINTS[1]))
    assert agenda.over
    assert {row["status"] for row in agenda.rows.values()} == {"completed"}


def test_all_at_once(tmp_path: Path) -> None:
    complete(tmp_path, POINTS[1])
    search = Told(POINTS)
    agenda = Agenda(search, [0], tmp_path)
    assert agenda.settle() == [POINTS[0], POINTS[2]]
    assert set(agenda.rows) == {POINTS[1].key}
    assert search.told == [(POINTS[1].key, ["completed"])]
    assert drain(agenda) == [(0.1, 0), (0.3, 0)]


def test_search_hears_of_a_point_when_all_its_replicates_are_over(tmp_path: Path) -> None:
    search = Told(POINTS[:2])
    agenda = Agenda(search, [0, 1], tmp_path)
    first = [agenda.next(), agenda.next()]
    agenda.next()
    assert first[0] is not None
    assert first[1] is not None
    agenda.ended(first[1], record_failed(tmp_path, first[1], History(), "broken"))
    assert not search.told
    agenda.ended(first[0], complete(tmp_path, first[0]))
    assert search.told == [(POINTS[0].key, ["failed", "completed"])]


def test_trial_of_another_sweep_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agenda = Agenda(Listed(POINTS[:2]), [0], tmp_path)
    clock = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: clock)
    first = agenda.next()
    assert first is not None
    agenda.postpone(first)
    second = agenda.next()
    assert second == POINTS[1]
    agenda.ended(second, complete(tmp_path, second))
    assert agenda.next() is None
    assert not agenda.over
    clock += module.LOOK_AGAIN_S
    assert agenda.next() == first
    agenda.postpone(first)
    complete(tmp_path, first)  # there
    clock += module.LOOK_AGAIN_S
    assert agenda.next() is None
    assert agenda.over
    assert agenda.num_begun == 1


def test_trial_budget(tmp_path: Path) -> None:
    """Finished trials do not count, nor does one that ran elsewhere."""
    complete(tmp_path, POINTS[0])
    agenda = Agenda(Listed(POINTS), [0], tmp_path, max_trials=1)
    first = agenda.next()
    assert first == POINTS[1]
    assert agenda.next() is None
    assert agenda.spent
    agenda.postpone(first)
    assert agenda.next() == POINTS[2]
    assert agenda.next() is None
