"""Is one method better than another? Paired tests over seeds, corrected for their number."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distsparse.results.configurations import check_columns, check_numeric, completed, grouped, settings

TESTS = ("t", "wilcoxon")


def compare(
    trials: pd.DataFrame,
    value: str = "accuracy",
    *,
    between: str = "method.name",
    baseline: Any = None,
    within: Sequence[str] = (),
    test: Literal["t", "wilcoxon"] = "t",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return a row for each two values of a column, with the difference of paired trials and its p-value.

    Two trials are a pair if they agree in the seed, the study and all other settings. Where ``between`` is a
    component's name, such as ``method.name``, two methods' own parameters pair only if both have the same
    values of them; trials that differ in the other parameters are averaged before pairing. Trials without a
    partner count for nothing.

    Columns: ``a`` and ``b``; ``num_pairs``; ``a_mean``, ``b_mean`` and ``difference`` (a - b) over the pairs;
    ``sd`` of the differences; ``low`` and ``high`` of Student's interval of their mean; ``p_value``,
    two-sided; ``p_holm``, corrected for all rows of the result (Holm, A simple sequentially rejective
    multiple test procedure, 1979). Fewer than two pairs, and by Student's test differences
    that are all the same, have no p-value and count as no test.

    Args:
        trials: a ``trials`` table; those that did not complete, or have no value, are left out.
        value: the numeric column to compare.
        between: the column whose values are compared.
        baseline: compare all others with this value of ``between`` (as ``b``), instead of all with all.
        within: columns; each combination of their values is compared apart.
        test: Student's paired t-test, or Wilcoxon's signed-rank test, which needs six pairs or more to find
            anything at 5 %.
        confidence: of the interval.

    Raises:
        ValueError: an unknown column, fewer than two values to compare, no such baseline, or an unknown test.
    """
    check_columns(trials, [between, *within])
    check_numeric(trials, [value])
    if test not in TESTS:
        raise ValueError(f"test = {test!r}: allowed are {', '.join(TESTS)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: must be in (0, 1)")
    trials = completed(trials)
    trials = trials[trials[value].notna() & trials[between].notna()]
    names = sorted(trials[between].unique().tolist())
    if len(names) < 2:
        raise ValueError(f"{between} has {len(names)} values among the completed trials: nothing to compare")
    if baseline is not None and baseline not in names:
        raise ValueError(f"baseline = {baseline!r}: {between} has only {', '.join(map(str, names))}")
    shared = [name for name in settings(trials) if name != between and name not in within]
    if "seed" in trials and "seed" not in (between, *within):
        shared.append("seed")
    rows: list[dict[Any, Any]] = []
    places, number = grouped(trials, within)
    for group, place in enumerate(places.to_dict("records")):
        part = trials[number == group]
        by_name = {name: part[part[between] == name] for name in names}
        for a, b in _couples(names, baseline):
            keys = [key for key in shared if _pairs(key, between, by_name[a], by_name[b])]
            pairs = _paired(by_name[a], by_name[b], value, keys)
            if len(pairs):
                rows.append({**place, "a": a, "b": b, **_tested(pairs, test, confidence)})
    columns = ["num_pairs", "a_mean", "b_mean", "difference", "sd", "low", "high", "p_value"]
    table = pd.DataFrame(rows, columns=[*within, "a", "b", *columns])
    table["p_holm"] = holm(table["p_value"].to_numpy(dtype=np.float64))
    return table


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Holm's adjusted p-values; NaN stays NaN and counts as no test."""
    adjusted = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def _couples(names: Sequence[Any], baseline: Any) -> list[tuple[Any, Any]]:
    if baseline is None:
        return list(itertools.combinations(names, 2))
    return [(name, baseline) for name in names if name != baseline]


def _pairs(key: str, between: str, a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Return whether trials must agree in a column to be a pair."""
    component, _, last = between.rpartition(".")
    if last != "name" or not key.startswith(f"{component}."):
        return True
    return set(a[key].dropna()) == set(b[key].dropna()) and bool(
        a[key].notna().all() and b[key].notna().all()
    )


def _paired(a: pd.DataFrame, b: pd.DataFrame, value: str, keys: list[str]) -> NDArray[np.float64]:
    """Return (pairs, 2): the values of a and b at every combination of keys that both have."""
    both = pd.concat([a, b], ignore_index=True)
    number = grouped(both, keys)[1]
    numbers = both[value].to_numpy(dtype=np.float64, na_value=np.nan)
    means = [
        pd.Series(numbers[part]).groupby(number[part]).mean() for part in (slice(len(a)), slice(len(a), None))
    ]
    return pd.concat(means, axis=1).dropna().to_numpy(dtype=np.float64)


def _tested(pairs: NDArray[np.float64], test: str, confidence: float) -> dict[str, float]:
    from scipy import stats

    differences = pairs[:, 0] - pairs[:, 1]
    # Rounding in the last bit is no difference.
    differences[np.isclose(pairs[:, 0], pairs[:, 1], rtol=1e-12, atol=0)] = 0.0
    n, mean = len(differences), float(differences.mean())
    sd = float(differences.std(ddof=1)) if n > 1 else np.nan
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * sd / np.sqrt(n) if n > 1 else np.nan
    if n < 2:
        p_value = np.nan
    elif not differences.any():
        p_value = 1.0
    elif test == "wilcoxon":
        p_value = float(stats.wilcoxon(differences).pvalue)
    elif sd < 1e-9 * abs(mean):
        p_value = np.nan  # two runs that happen to differ by the same few test samples prove nothing
    else:
        p_value = float(2 * stats.t.sf(abs(mean) / (sd / np.sqrt(n)), n - 1))
    return {
        "num_pairs": n,
        "a_mean": float(pairs[:, 0].mean()),
        "b_mean": float(pairs[:, 1].mean()),
        "difference": mean,
        "sd": sd,
        "low": mean - half,
        "high": mean + half,
        "p_value": p_value,
    }
