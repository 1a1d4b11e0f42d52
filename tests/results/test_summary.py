from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from frames import trials

from distsparse.results import summarize
from distsparse.results.bootstrap import mean_interval, resamples


def test_hand_computed_mean_sd_and_interval():
    rows = [
        *({"method.name": "set", "seed": seed, "accuracy": a} for seed, a in enumerate([0.9, 0.6, 0.75])),
        *({"method.name": "rigl", "seed": seed, "accuracy": a} for seed, a in enumerate([0.8, 0.9])),
        {"method.name": "dense", "seed": 0, "accuracy": 0.95},
    ]
    table = summarize(trials(*rows), ["accuracy"]).set_index("method.name")
    assert list(table.index) == ["dense", "rigl", "set"]
    assert table["num_trials"].tolist() == [1, 2, 3]
    assert table["accuracy_mean"].tolist() == pytest.approx([0.95, 0.85, 0.75])
    # sqrt(((0.05)² + (0.05)²) / 1) and sqrt((0.15² + 0.15²) / 2)
    assert table["accuracy_sd"].tolist()[1:] == pytest.approx([0.0707107, 0.15], abs=1e-6)
    # Of two values the mean of a resample is the lower one in a quarter of cases, of three in 1/27 = 3.7 %.
    assert table.loc["rigl", ["accuracy_low", "accuracy_high"]].tolist() == pytest.approx([0.8, 0.9])
    assert table.loc["set", ["accuracy_low", "accuracy_high"]].tolist() == pytest.approx([0.6, 0.9])
    assert table.loc["dense", ["accuracy_sd", "accuracy_low", "accuracy_high"]].isna().all()
    assert table.loc["set", "trials"].split() == ["000000000000", "000000000001", "000000000002"]
    narrow = summarize(trials(*rows), ["accuracy"], confidence=0.9).set_index("method.name")
    # At 90 % the range of three values loses its ends: 1/27 < 5 % <= 4/27, at (2 · 0.6 + 0.75) / 3 = 0.65.
    assert narrow.loc["set", ["accuracy_low", "accuracy_high"]].tolist() == pytest.approx([0.65, 0.85])


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_interval_is_that_of_all_ordered_resamples(n, confidence):
    values = np.random.default_rng(n).normal(size=(4, n))
    low, high = mean_interval(values, confidence=confidence, num_resamples=1, seed=0)
    for row, lower, upper in zip(values, low, high, strict=True):
        means = np.sort([np.mean(draw) for draw in itertools.product(row, repeat=n)])
        tail = (1 - confidence) / 2 * len(means)
        assert lower == pytest.approx(means[int(np.ceil(tail - 1e-6)) - 1])
        assert upper == pytest.approx(means[int(np.ceil(len(means) - tail - 1e-6)) - 1])


def test_many_values_are_resampled_towards_the_normal_interval():
    values = np.random.default_rng(0).normal(5, 2, size=(3, 400))
    low, high = mean_interval(values, confidence=0.95, num_resamples=4000, seed=1)
    half = 1.96 * values.std(axis=1, ddof=1) / 20
    assert np.abs(low - (values.mean(axis=1) - half)).max() < 0.03
    assert np.abs(high - (values.mean(axis=1) + half)).max() < 0.03
    assert len(resamples(8, num_resamples=50, seed=0)[0]) == 50
    assert resamples(7, num_resamples=50, seed=0)[1].sum() == pytest.approx(1)


def test_only_completed_trials_with_a_value_count():
    frame = trials(
        {"method.name": "set", "accuracy": 0.5, "latency_ms": 1.0},
        {"method.name": "set", "accuracy": 0.7, "latency_ms": None},
        {"method.name": "set", "accuracy": 0.1, "latency_ms": 9.0, "status": "failed"},
        {"method.name": "rigl", "accuracy": 0.4, "latency_ms": None},
    ).assign(status=["completed", "completed", "failed", "completed"])
    table = summarize(frame, by=["method.name"]).set_index("method.name")
    assert table.loc["set", "num_trials"] == 2
    assert table.loc["set", "accuracy_mean"] == pytest.approx(0.6)
    assert table.loc["set", "latency_ms_mean"] == 1.0
    assert np.isnan(table.loc["rigl", "latency_ms_mean"])
    assert "wall_s_mean" not in table
    whole = summarize(frame, ["accuracy"], by=[])
    assert whole["num_trials"].tolist() == [3]
    assert summarize(frame.iloc[:0], ["accuracy"], by=["method.name"]).empty


def test_equal_replicates_have_exactly_their_value_as_mean():
    rows = [{"seed": seed, "sparsity": value} for value in (0.9, 0.98) for seed in range(3)]
    frame = trials(*rows).assign(**{"method.sparsity": [0.9] * 3 + [0.98] * 3})
    table = summarize(frame, ["sparsity"])
    for suffix in ("mean", "low", "high"):
        assert table[f"sparsity_{suffix}"].tolist() == [0.9, 0.98]


def test_a_summary_agrees_with_pandas_on_random_groups():
    rng = np.random.default_rng(3)
    frame = trials(
        *(
            {"method.alpha": a, "accuracy": x}
            for a, x in zip(rng.integers(0, 9, 90), rng.random(90), strict=True)
        )
    )
    table = summarize(frame, ["accuracy"]).set_index("method.alpha")
    expected = frame.groupby("method.alpha")["accuracy"].agg(["size", "mean", "std"])
    np.testing.assert_allclose(table[["num_trials", "accuracy_mean", "accuracy_sd"]], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": ["acuracy"]}, "unknown column 'acuracy'; close: accuracy"),
        ({"values": ["status"]}, "'status' is not numeric"),
        ({"by": ["metod.name"]}, "unknown column 'metod.name'; close: method.name"),
        ({"confidence": 95}, r"confidence = 95: must be in \(0, 1\)"),
    ],
)
def test_mistakes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        summarize(trials({"method.name": "set", "accuracy": 0.5}), **arguments)


def test_the_input_is_untouched():
    frame = trials({"accuracy": 0.5}, {"accuracy": 0.6})
    before = frame.copy()
    summarize(frame)
    pd.testing.assert_frame_equal(frame, before)
