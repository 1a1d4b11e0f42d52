"""Where in its run a trial is compared: after its grace, in percent of the rest."""

from __future__ import annotations

from typing import Any

import pytest
from parts import tiny

from distsparse.sweep.asha import Asha, parse_asha


@pytest.mark.parametrize(
    ("grace", "method", "expected"),
    [
        (0.0, "rigl", {0: None, 50: 50, 100: 100}),
        (0.5, "rigl", {50: None, 60: 20, 100: 100}),
        (None, "rigl", {75: None, 80: 20, 100: 100}),
        # A topology that never moves is final from the start.
        (None, "static", {0: None, 50: 50}),
    ],
)
def test_progress_after_the_grace(grace: float | None, method: str, expected: dict[int, Any]) -> None:
    config = tiny({"method.name": method})
    rule = Asha("accuracy", grace, 3)
    for step, percent in expected.items():
        assert rule.progress(config, step, 100) == (None if percent is None else pytest.approx(percent))


def test_defaults() -> None:
    assert parse_asha({}) == Asha("validation_accuracy", None, 3)
    assert parse_asha(None) is None
