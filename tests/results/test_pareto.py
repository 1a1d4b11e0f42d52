from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from distsparse.results import pareto, pareto_front


def oracle(values: np.ndarray, signs: list[int]) -> list[int]:
    """Rows on the front, from the definition."""
    costs = values * np.array(signs)
    return [
        i
        for i, point in enumerate(costs)
        if not np.isnan(point).any()
        and not any((other <= point).all() and (other < point).any() for other in costs)
    ]


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4, 5])
def test_front_is_what_the_definition_says(num_objectives, monkeypatch):
    # Blocks so small that several are needed.
    monkeypatch.setattr(pareto, "BLOCK", 4)
    monkeypatch.setattr(pareto, "FRONT_BLOCK", 3)
    rng = np.random.default_rng(num_objectives)
    names = list("abcde")[:num_objectives]
    for _ in range(200):
        num_rows = int(rng.integers(0, 26))
        values = rng.integers(0, rng.integers(2, 7), (num_rows, num_objectives)).astype(float)
        values[rng.random(values.shape) < 0.08] = np.nan
        values[rng.random(values.shape) < 0.05] = np.inf
        values[rng.random(values.shape) < 0.05] = -np.inf
        num_maximized = int(rng.integers(0, num_objectives + 1))
        signs = [-1] * num_maximized + [1] * (num_objectives - num_maximized)
        frame = pd.DataFrame(values, columns=names, index=rng.permutation(num_rows) * 10)
        front = pareto_front(frame, maximize=names[:num_maximized], minimize=names[num_maximized:])
        pd.testing.assert_frame_equal(front, frame.iloc[oracle(values, signs)])


def test_hand_computed_front():
    frame = pd.DataFrame(
        {
            "name": ["best accuracy", "dominated", "tie", "tie too", "fast", "no latency"],
            "accuracy": [0.98, 0.96, 0.97, 0.97, 0.90, 0.99],
            "latency_ms": [3.0, 2.5, 2.0, 2.0, 0.5, None],
        }
    )
    front = pareto_front(frame, maximize=["accuracy"], minimize=["latency_ms"])
    assert front["name"].tolist() == ["best accuracy", "tie", "tie too", "fast"]
    assert pareto_front(frame, maximize=["accuracy"])["name"].tolist() == ["no latency"]


def test_input_is_untouched_and_repeated_index_labels_are_fine():
    frame = pd.DataFrame({"a": [1, 2, 2], "b": ["x", "y", "z"]}, index=[7, 7, 7])
    before = frame.copy()
    assert pareto_front(frame, maximize=["a"])["b"].tolist() == ["y", "z"]
    pd.testing.assert_frame_equal(frame, before)


def test_integers_that_no_float_can_tell_apart_are_compared_exactly():
    values = pd.array([2**53, 2**53 + 1, None], dtype="Int64")
    frame = pd.DataFrame({"nnz": values, "other": [0, 0, 0]})
    assert pareto_front(frame, minimize=["nnz"]).index.tolist() == [0]
    assert pareto_front(frame, maximize=["nnz", "other"]).index.tolist() == [1]


def test_no_rows_or_no_values_give_an_empty_front():
    frame = pd.DataFrame({"a": [np.nan, np.nan], "b": [1.0, 2.0]})
    for part in (frame, frame.iloc[:0]):
        front = pareto_front(part, maximize=["a"], minimize=["b"])
        assert len(front) == 0
        assert list(front.columns) == ["a", "b"]


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "float32", "uint8", "bool", "double[pyarrow]"])
def test_every_numeric_dtype_has_a_front(dtype):
    frame = pd.DataFrame({"a": pd.Series([0, 1, 1], dtype=dtype), "b": [0.0, 1.0, 2.0]})
    assert pareto_front(frame, maximize=["a"], minimize=["b"]).index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("maximize", "minimize", "message"),
    [
        ([], [], "no objective"),
        (["acuracy"], [], "unknown column 'acuracy'; close: accuracy"),
        (["accuracy", "accuracy"], [], "'accuracy' is named twice"),
        (["accuracy"], ["accuracy"], "'accuracy' is named twice"),
        (["accuracy"], ["method"], "'method' is not numeric"),
    ],
)
def test_mistaken_objectives_are_refused(maximize, minimize, message):
    frame = pd.DataFrame({"accuracy": [0.5], "method": ["set"]})
    with pytest.raises(ValueError, match=message):
        pareto_front(frame, maximize=maximize, minimize=minimize)


def sphere(num_points, num_objectives, seed=0):
    points = np.abs(np.random.default_rng(seed).normal(size=(num_points, num_objectives)))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize(("num_points", "num_objectives"), [(100_000, 2), (100_000, 3), (3_000, 4)])
def test_every_point_of_a_sphere_octant_is_on_the_front(num_points, num_objectives):
    frame = pd.DataFrame(sphere(num_points, num_objectives), columns=list("abcd")[:num_objectives])
    assert len(pareto_front(frame, maximize=list(frame.columns))) == num_points


def test_a_large_antichain_below_one_constant_objective():
    order = np.random.default_rng(1).permutation(100_000)
    frame = pd.DataFrame({"a": 0, "b": order, "c": -order})
    assert len(pareto_front(frame, minimize=["a", "b", "c"])) == len(order)


def test_order_of_rows_and_objectives_does_not_matter():
    values = np.random.default_rng(2).integers(0, 6, (200, 3))
    frame = pd.DataFrame(values, columns=list("abc"))
    expected = set(pareto_front(frame, maximize=["a"], minimize=["b", "c"]).index)
    shuffled = frame.sample(frac=1, random_state=3)
    for names in itertools.permutations(["b", "c"]):
        assert set(pareto_front(shuffled, maximize=["a"], minimize=list(names)).index) == expected
