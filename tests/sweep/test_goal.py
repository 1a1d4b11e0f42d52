"""Objectives and constraints: their YAML, and what they make of a point's rows."""

from __future__ import annotations

from typing import Any

import pytest

from distsparse.sweep.goal import parse_goal

BAD: dict[str, tuple[Any, Any, list[str]]] = {
    "none": ({}, {}, ["objectives = {}", "columns of trials"]),
    "a list": (["accuracy"], {}, ["objectives = ['accuracy']"]),
    "unknown": ({"acuracy": "max"}, {}, ["objectives.acuracy", "did you mean 'accuracy'"]),
    "text": ({"status": "max"}, {}, ["objectives.status", "no numeric column"]),
    "direction": ({"accuracy": "up"}, {}, ["objectives.accuracy = 'up'", "max, min"]),
    "constraints": ({"accuracy": "max"}, ["x"], ["constraints = ['x']"]),
    "unknown constraint": ({"accuracy": "max"}, {"flops": {"max": 1}}, ["constraints.flops"]),
    "no bound": ({"accuracy": "max"}, {"nnz": {}}, ["constraints.nnz = {}", "min"]),
    "other bound": ({"accuracy": "max"}, {"nnz": {"most": 3}}, ["constraints.nnz"]),
    "bound as text": ({"accuracy": "max"}, {"nnz": {"max": "3"}}, ["constraints.nnz"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_goal_is_one_clear_line(case: str) -> None:
    objectives, constraints, expected = BAD[case]
    with pytest.raises(ValueError) as caught:
        parse_goal(objectives, constraints)
    assert "\n" not in str(caught.value)
    for text in expected:
        assert text in str(caught.value)


def test_mean_of_the_replicates_that_completed() -> None:
    goal = parse_goal({"accuracy": "max"}, {"inference_flops": {"max": 0.2}, "sparsity": {"min": 0.5}})
    rows = [
        {"status": "completed", "accuracy": 0.9, "inference_flops": 0.3, "sparsity": 0.75},
        {"status": "completed", "accuracy": 0.8, "inference_flops": 0.2, "sparsity": 0.75},
        {"status": "failed", "accuracy": 0.1},
    ]
    means = goal.means(rows)
    assert means == pytest.approx({"accuracy": 0.85, "inference_flops": 0.25, "sparsity": 0.75})
    assert means is not None
    assert goal.violations(means) == pytest.approx([0.05, -0.25])
    assert goal.means([rows[2]]) is None
    assert goal.means([{"status": "completed", "accuracy": 0.9}]) is None
