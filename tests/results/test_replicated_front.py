from __future__ import annotations

import itertools

import numpy as np
import pytest
from frames import trials

from distsparse.results import front_of_means, pareto_front


def replicated(values):
    """One configuration per name, each value a replicate: (accuracy, latency)."""
    rows = [
        {"method.name": name, "seed": seed, "accuracy": accuracy, "latency_ms": latency}
        for name, pairs in values.items()
        for seed, (accuracy, latency) in enumerate(pairs)
    ]
    return trials(*rows)


def test_front_of_means_is_the_front_of_the_mean_rows():
    frame = replicated({"a": [(0.9, 2.0), (0.7, 2.0)], "b": [(0.85, 1.9), (0.81, 2.1)], "c": [(0.5, 1.0)]})
    table = front_of_means(frame, maximize=["accuracy"], minimize=["latency_ms"]).set_index("method.name")
    assert table["accuracy_mean"].tolist() == pytest.approx([0.8, 0.83, 0.5])
    assert table["on_front"].tolist() == [False, True, True]
    assert table["num_trials"].tolist() == [2, 2, 1]
    means = table[["accuracy_mean", "latency_ms_mean"]]
    front = pareto_front(means, maximize=["accuracy_mean"], minimize=["latency_ms_mean"])
    assert front.index.tolist() == ["b", "c"]
    assert table.loc["c", "front_frequency"] == 1
    assert table.loc["b", "trials"] == "000000000002 000000000003"


def test_frequency_is_the_share_of_all_resamples():
    frame = replicated({"a": [(0.9, 1.0), (0.6, 1.0)], "b": [(0.8, 1.0), (0.7, 1.0)]})
    table = front_of_means(frame, maximize=["accuracy"], minimize=["latency_ms"], num_resamples=4000)
    a = [np.mean(draw) for draw in itertools.product([0.9, 0.6], repeat=2)]
    b = [np.mean(draw) for draw in itertools.product([0.8, 0.7], repeat=2)]
    wins = [np.isclose(x, y) or x > y for x, y in itertools.product(a, b)]
    losses = [np.isclose(x, y) or x < y for x, y in itertools.product(a, b)]
    assert table["front_frequency"].tolist() == pytest.approx([np.mean(wins), np.mean(losses)], abs=0.03)


def test_sparsities_that_are_equal_stay_equal_as_means():
    rows = [
        {"method.name": name, "seed": seed, "accuracy": accuracy, "sparsity": 0.9}
        for name, accuracy, seeds in (("a", 0.9, 3), ("b", 0.8, 7))
        for seed in range(seeds)
    ]
    table = front_of_means(trials(*rows), maximize=["accuracy", "sparsity"], num_resamples=20)
    assert table["on_front"].tolist() == [True, False]
    assert table["front_frequency"].tolist() == [1.0, 0.0]


def test_trials_without_a_value_or_that_failed_are_left_out():
    frame = replicated({"a": [(0.9, 1.0), (0.1, None)], "b": [(None, 1.0)], "c": [(0.99, 0.1)]})
    frame.loc[frame["method.name"] == "c", "status"] = "failed"
    table = front_of_means(frame, maximize=["accuracy"], minimize=["latency_ms"])
    assert table["method.name"].tolist() == ["a"]
    assert table["num_trials"].tolist() == [1]
    empty = front_of_means(frame.iloc[:0], maximize=["accuracy"], minimize=["latency_ms"], by=["method.name"])
    assert len(empty) == 0
    with pytest.raises(ValueError, match="unknown column 'acc'"):
        front_of_means(frame, maximize=["acc"])
