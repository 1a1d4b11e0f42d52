"""Whose outcome of a run stands."""

from __future__ import annotations

import pytest

from distsparse.loggers.records import Outcome


@pytest.mark.parametrize(
    ("status", "error", "stands"),
    [
        ("trained", None, False),
        ("failed", None, False),  # a worker that does not know why
        ("failed", "ArithmeticError: planted", True),
        ("completed", None, True),
        ("stopped", None, True),
        ("interrupted", None, True),
    ],
)
def test_a_workers_outcome_is_not_the_last(status: str, error: str | None, stands: bool) -> None:
    assert Outcome(status, error, {}).is_last == stands
