"""What a sweep shows: counts, the front, the time left; on a terminal below a bar, in a log as lines."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from parts import TINY

from distsparse.config import override
from distsparse.sweep import live as module
from distsparse.sweep.agenda import Agenda, Listed
from distsparse.sweep.live import Live, duration, front_lines, label, varying
from distsparse.train.progress import Progress

BOTH = {"accuracy": "max", "sparsity": "max"}
POINTS = [override(TINY, {"method.alpha": alpha, "study": "s"}) for alpha in (0.1, 0.2, 0.3)]


def row(trial: str, accuracy: float, sparsity: float, status: str = "completed") -> dict[str, Any]:
    return {
        "trial": trial,
        "status": status,
        "accuracy": accuracy,
        "sparsity": sparsity,
        "wall_s": 1.0,
        "error": "broken",
    }


def test_front_is_of_completed_trials_best_first() -> None:
    rows = [
        row("a", 0.8, 0.95),
        row("b", 0.9, 0.9),
        row("c", 0.85, 0.9),
        row("d", 0.99, 0.99, "failed"),
        {"trial": "e", "status": "completed", "accuracy": 0.99},
    ]
    assert front_lines(rows, BOTH) == [
        "  front  b  accuracy 0.9  sparsity 0.9",
        "  front  a  accuracy 0.8  sparsity 0.95",
    ]
    assert front_lines(rows, {"accuracy": "min"}) == ["  front  a  accuracy 0.8"]
    assert front_lines([], BOTH) == []


def test_long_front_is_cut() -> None:
    rows = [row(str(i), i / 100, 1 - i / 100) for i in range(20)]
    lines = front_lines(rows, BOTH)
    assert len(lines) == module.FRONT_LINES + 1
    assert lines[-1] == "  front  and 12 more"


@pytest.mark.parametrize(
    ("seconds", "said"), [(12, "12 s"), (61, "61 s"), (100, "2 min"), (7000, "117 min"), (9000, "2.5 h")]
)
def test_duration(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_labels_name_what_differs() -> None:
    assert varying(POINTS) == ["method.alpha"]
    assert label(POINTS[1], varying(POINTS)) == "method.alpha=0.2"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    """One trial of three fails, one completes, one runs; then a minute goes by. Returns standard error."""
    error = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", error)
    clock = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: clock)
    agenda = Agenda(Listed(POINTS), [0], tmp_path)
    progress = Progress(3, unit="trial", enabled=True)
    live = Live(agenda, progress, BOTH, varying(POINTS))
    begun = [agenda.next() for _ in range(3)]
    live.tick()
    for config, status in zip(begun[:2], ("completed", "failed"), strict=True):
        assert config is not None
        ended = row(config.key, 0.9, 0.7, status)
        agenda.ended(config, ended)
        live.ended(config, ended)
    clock += 61
    live.tick()
    live.tick()
    progress.close()
    return error.getvalue()


def test_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(tmp_path, monkeypatch, terminal=False) == ""
    lines = capsys.readouterr().out.splitlines()
    key = POINTS[0].key
    assert lines == [
        f"    1/3  {key}  accuracy 0.9000  sparsity 0.7000  1.0 s  method.alpha=0.1",
        f"    2/3  {POINTS[1].key}  failed: broken  method.alpha=0.2",
        "1 completed, 1 failed, 1 running, about 30 s left",
        f"  front  {key}  accuracy 0.9  sparsity 0.7",
    ]


def test_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = show(tmp_path, monkeypatch, terminal=True)
    assert "2/3" in shown
    assert "1 completed, 1 failed, 1 running" in shown
    assert f"  front  {POINTS[0].key}  accuracy 0.9  sparsity 0.7" in shown
    assert "left" not in capsys.readouterr().out
