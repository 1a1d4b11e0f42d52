from __future__ import annotations

import pytest

from distsparse.ops import schedule
from distsparse.ops.schedule import Schedule


@pytest.mark.parametrize(
    ("curve", "values"),
    [
        # at progress 0, 1/4, 1/2, 1; cos(π/4) = 0.70710678
        (schedule.constant(0.3), (0.3, 0.3, 0.3, 0.3)),
        (schedule.cosine(0.3), (0.3, 0.15 * 1.70710678, 0.15, 0.0)),
        (schedule.linear(0.3), (0.3, 0.225, 0.15, 0.0)),
        (schedule.linear(0.2, 0.8), (0.2, 0.35, 0.5, 0.8)),
        # (3/4)³ = 0.421875
        (schedule.inverse_power(0.8), (0.8, 0.8 * 0.421875, 0.1, 0.0)),
        (schedule.inverse_power(0.8, 1.0), (0.8, 0.6, 0.4, 0.0)),
        # Zhu–Gupta: 0.9 - 0.9 · (3/4)³ and 0.9 - 0.9 / 8
        (schedule.cubic(0.9), (0.0, 0.9 - 0.9 * 0.421875, 0.7875, 0.9)),
        (schedule.cubic(0.9, 0.5), (0.5, 0.9 - 0.4 * 0.421875, 0.85, 0.9)),
    ],
)
def test_values(curve: Schedule, values: tuple[float, ...]) -> None:
    assert [curve(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(values, abs=1e-8)


@pytest.mark.parametrize(
    "curve",
    [schedule.cosine(0.3), schedule.linear(0.3, 0.1), schedule.inverse_power(0.3), schedule.cubic(0.9)],
)
def test_progress_outside_is_clamped(curve: Schedule) -> None:
    assert curve(-0.5) == curve(0.0)
    assert curve(1.5) == curve(1.0)


def test_alternating_begins_compressed() -> None:
    assert [schedule.alternating(0.9)(phase) for phase in range(5)] == [0.9, 0.0, 0.9, 0.0, 0.9]
