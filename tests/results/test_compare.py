from __future__ import annotations

import itertools

import numpy as np
import pytest
from frames import trials

from distsparse.results import compare
from distsparse.results.compare import holm


def methods(**accuracies):
    """Trials of each method, one per seed."""
    return trials(
        *(
            {"method.name": name, "seed": seed, "accuracy": value}
            for name, values in accuracies.items()
            for seed, value in enumerate(values)
        )
    )


def test_hand_computed_paired_test():
    # Differences 1, 2, 3, 2: mean 2, sd sqrt(2/3), t = 2 / (0.8165 / 2) = 4.899 on 3 degrees of freedom.
    [row] = compare(methods(rigl=[3, 5, 7, 4], set=[2, 3, 4, 2])).to_dict("records")
    assert (row["a"], row["b"], row["num_pairs"]) == ("rigl", "set", 4)
    assert row["difference"] == 2
    assert row["sd"] == pytest.approx(0.8164966)
    # Student's t of 3 degrees of freedom: p = 1 - 2/π (atan(x) + x / (1 + x²)) with x = t / √3 = 2√2.
    x = 2 * np.sqrt(2)
    assert row["p_value"] == pytest.approx(1 - 2 / np.pi * (np.arctan(x) + x / (1 + x**2)))
    # t(0.975, 3) = 3.18245 from the tables.
    assert row["high"] - row["difference"] == pytest.approx(3.18245 * 0.8164966 / 2, rel=1e-5)
    assert row["difference"] - row["low"] == pytest.approx(3.18245 * 0.8164966 / 2, rel=1e-5)
    assert (row["a_mean"], row["b_mean"]) == (4.75, 2.75)


def test_wilcoxon_counts_all_signs():
    a, b = [5.0, 6.5, 8.0, 3.2, 9.9, 7.4], [4.0, 6.0, 5.5, 3.9, 5.0, 7.1]
    [row] = compare(methods(a=a, b=b), test="wilcoxon").to_dict("records")
    differences = np.subtract(a, b)
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    observed = min(ranks[differences > 0].sum(), ranks[differences < 0].sum())
    sums = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product([0, 1], repeat=6)
    ]
    assert row["p_value"] == pytest.approx(2 * np.mean(np.array(sums) <= observed))


def test_holm_by_hand():
    adjusted = holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005]))
    # Sorted 0.005·4, 0.01·3, 0.03·2, 0.04·1 → raised to the largest before it.
    np.testing.assert_allclose(adjusted, [0.03, 0.06, np.nan, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    assert holm(np.array([])).tolist() == []


def test_each_two_methods_and_a_baseline():
    frame = methods(a=[1, 2, 3], b=[2, 2, 5], c=[9, 8, 7])
    table = compare(frame)
    assert list(zip(table["a"], table["b"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    np.testing.assert_allclose(table["p_holm"], holm(table["p_value"].to_numpy()))
    table = compare(frame, baseline="b")
    assert list(zip(table["a"], table["b"], strict=True)) == [("a", "b"), ("c", "b")]


def test_pairs_agree_in_seed_and_shared_settings_only():
    rows = [
        {"method.name": name, "seed": seed, "method.sparsity": sparsity, "accuracy": base + sparsity + seed}
        for name, base in (("a", 0.1), ("b", 0.0))
        for sparsity in (0.5, 0.9)
        for seed in (0, 1)
    ]
    [row] = compare(trials(*rows[::-1])).to_dict("records")
    assert row["num_pairs"] == 4
    assert row["difference"] == pytest.approx(0.1)
    assert row["sd"] == pytest.approx(0, abs=1e-12)
    one_missing = trials(*rows[1:])
    assert compare(one_missing)["num_pairs"].tolist() == [3]
    table = compare(one_missing, within=["method.sparsity"])
    assert table["method.sparsity"].tolist() == [0.5, 0.9]
    assert table["num_pairs"].tolist() == [1, 2]
    assert np.isnan(table["p_holm"][0])
    assert np.isnan(table["p_holm"][1])  # its two differences are the same


def test_a_parameter_that_one_method_lacks_is_averaged_over():
    rows = [
        *({"method.name": "static", "seed": seed, "accuracy": 1.0 * seed} for seed in (0, 1)),
        *(
            {"method.name": "rigl", "seed": seed, "method.delta_T": delta, "accuracy": seed + delta / 100}
            for seed in (0, 1)
            for delta in (100, 300)
        ),
    ]
    [row] = compare(trials(*rows)).to_dict("records")
    assert (row["a"], row["num_pairs"]) == ("rigl", 2)
    assert row["difference"] == pytest.approx(2.0)


def test_equal_values_and_single_pairs_are_no_evidence():
    [row] = compare(methods(a=[1, 2], b=[1, 2])).to_dict("records")
    assert row["p_value"] == 1
    [row] = compare(methods(a=[1], b=[2])).to_dict("records")
    assert row["num_pairs"] == 1
    assert np.isnan(row["p_value"])
    assert np.isnan(row["low"])
    [row] = compare(methods(a=[0.5, 0.7], b=[0.4, 0.6])).to_dict("records")
    assert np.isnan(row["p_value"])
    # 0.3 and 0.1 + 0.2 are one accuracy.
    [row] = compare(methods(a=[0.3, 0.5], b=[0.1 + 0.2, 0.5])).to_dict("records")
    assert row["p_value"] == 1


def test_failed_trials_and_gaps_have_no_partner():
    frame = methods(a=[1, 2, 3], b=[0, 1, None])
    frame.loc[0, "status"] = "failed"
    assert compare(frame)["num_pairs"].tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value": "acc"}, "unknown column 'acc'"),
        ({"between": "method.nam"}, "unknown column 'method.nam'; close: method.name"),
        ({"baseline": "c"}, "baseline = 'c': method.name has only a, b"),
        ({"test": "z"}, "test = 'z': allowed are t, wilcoxon"),
        ({"between": "study"}, "study has 1 values among the completed trials: nothing to compare"),
    ],
)
def test_mistakes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(methods(a=[1.0], b=[2.0]), **arguments)
