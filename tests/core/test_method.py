from __future__ import annotations

import pytest

from distsparse.core import Method, drop, gradient, grow, magnitude
from distsparse.ops.schedule import constant


def method(**changes: float) -> Method:
    update = (drop(magnitude, constant(0.3)), grow(gradient))
    return Method(sparsity=constant(0.9), update=update, **changes)


@pytest.mark.parametrize(
    ("every", "stop", "total", "expected"),
    [
        (10, 0.75, 100, [10, 20, 30, 40, 50, 60, 70]),  # t > 0, t % ΔT == 0, t ≤ 75
        (25, 0.75, 100, [25, 50, 75]),  # T_end itself is an update step
        (25, 74, 100, [25, 50]),  # above 1: a step
        (25, 75.0, 100, [25, 50, 75]),
        (1, 3, 100, [1, 2, 3]),
        (50, 1.0, 100, [50]),  # the run's steps are 0 … 99
        (100, 0.75, 100, []),
        (1, 0.001, 100, []),
    ],
)
def test_update_steps(every: int, stop: float, total: int, expected: list[int]) -> None:
    m = method(every=every, stop=stop)
    assert m.update_schedule(total) == expected
    assert [step for step in range(total) if m.is_update_step(step, total)] == expected


def test_without_moves_there_are_no_updates() -> None:
    static = Method(sparsity=constant(0.9))
    assert static.update_schedule(1000) == []
    assert not static.is_update_step(100, 1000)


@pytest.mark.parametrize("stop", [101, 50.5])
def test_t_end_past_the_run_or_between_steps(stop: float) -> None:
    with pytest.raises(ValueError, match=rf"T_end = {stop:g}: .* up to the run's 100"):
        method(stop=stop).stop_step(100)


def test_progress_is_relative_to_t_end() -> None:
    m = method(stop=0.5)
    assert [m.progress(step, 100) for step in (0, 25, 50, 99)] == [0, 0.5, 1, 1]
    assert method(stop=0.001).progress(0, 100) == 0


def test_needs() -> None:
    assert method().update_needs == {"grad_abs"}
    assert method().init_needs == frozenset()
