from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from distsparse.results import hypervolume, knee_point, worst_values


def oracle(costs, worst):
    """Unit cells between points and reference on an integer grid."""
    cells = itertools.product(*(range(int(limit)) for limit in worst))
    return sum(any((point <= np.array(cell)).all() for point in costs) for cell in cells)


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
def test_volume_is_the_number_of_dominated_cells(num_objectives):
    rng = np.random.default_rng(num_objectives)
    names = list("abcd")[:num_objectives]
    for _ in range(40):
        costs = rng.integers(0, 8, (int(rng.integers(0, 15)), num_objectives)).astype(float)
        worst = rng.integers(3, 7, num_objectives)
        frame = pd.DataFrame(costs, columns=names)
        reference = dict(zip(names, worst.tolist(), strict=True))
        assert hypervolume(frame, minimize=names, reference=reference) == oracle(costs, worst)
        negated = {name: -value for name, value in reference.items()}
        assert hypervolume(-frame, maximize=names, reference=negated) == oracle(costs, worst)


def test_hand_computed_area():
    frame = pd.DataFrame({"accuracy": [0.9, 0.8, 0.5, 0.99], "latency_ms": [3.0, 1.0, 2.0, None]})
    # From (0, 4): 0.9 · (4 - 3) + 0.8 · (3 - 1)
    volume = hypervolume(
        frame, maximize=["accuracy"], minimize=["latency_ms"], reference={"accuracy": 0, "latency_ms": 4}
    )
    assert volume == pytest.approx(2.5)
    assert worst_values(frame, maximize=["accuracy"], minimize=["latency_ms"]) == {
        "accuracy": 0.5,
        "latency_ms": 3.0,
    }


def test_a_reference_for_other_objectives_is_refused():
    frame = pd.DataFrame({"a": [1.0], "b": [1.0]})
    with pytest.raises(ValueError, match=r"reference = \{'a': 0\}: needs a value for each of a, b"):
        hypervolume(frame, maximize=["a", "b"], reference={"a": 0})


def test_the_knee_of_two_objectives_is_farthest_from_the_line_through_the_ends():
    rng = np.random.default_rng(0)
    for _ in range(50):
        x = np.sort(rng.random(12))
        y = np.sort(rng.random(12))[::-1]
        frame = pd.DataFrame({"x": x, "y": y})
        ends = np.array([[x[0], y[0]], [x[-1], y[-1]]])
        direction = ends[1] - ends[0]
        # Lengths along the axes are scaled to [0, 1], which keeps the order of distances from this line.
        distance = direction[0] * (y - ends[0, 1]) - direction[1] * (x - ends[0, 0])
        assert knee_point(frame, minimize=["x", "y"]).index.tolist() == [int(np.argmin(distance))]


def test_hand_computed_knee_of_three():
    frame = pd.DataFrame(
        {
            "accuracy": [0.9, 0.88, 0.5, 0.4],
            "sparsity": [0.0, 0.9, 1.0, 0.5],
            "latency_ms": [4.0, 1.0, 0.0, 9.0],
        }
    )
    # Costs scaled over the front's three rows: 0 + 1 + 1, 0.05 + 0.1 + 0.25, 1 + 0 + 0
    knee = knee_point(frame, maximize=["accuracy", "sparsity"], minimize=["latency_ms"])
    assert knee.index.tolist() == [1]
    assert knee_point(frame, maximize=["accuracy"]).index.tolist() == [0]
    assert len(knee_point(frame.iloc[:0], maximize=["accuracy"])) == 0
