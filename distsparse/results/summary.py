"""Replicates summarised: mean, standard deviation and a bootstrap interval for each configuration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distsparse.results.bootstrap import mean_interval
from distsparse.results.configurations import check_columns, check_numeric, completed, grouped, settings

VALUES = ("accuracy", "sparsity", "latency_ms", "wall_s")


def summarize(
    trials: pd.DataFrame,
    values: Sequence[str] | None = None,
    *,
    by: Sequence[str] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return a row for each configuration, over its replicates: the completed trials with other seeds.

    For each value there are the columns ``<value>_mean``, ``_sd`` (with n - 1; null for one trial), ``_low``
    and ``_high`` (percentile bootstrap interval of the mean, see :func:`.bootstrap.mean_interval`). Trials
    without a value are left out of that value. ``num_trials`` counts the trials, and ``trials`` names them.

    Args:
        trials: a ``trials`` table.
        values: numeric columns; by default accuracy, sparsity, latency and time, as far as there are any.
        by: what makes a configuration; by default :func:`.configurations.settings`.
        confidence: of the intervals, in (0, 1).
        num_resamples: of the bootstrap of more than seven replicates.
        seed: of that bootstrap.

    Raises:
        ValueError: an unknown column, one that is not numeric, or ``confidence`` out of its range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: must be in (0, 1)")
    if values is None:
        values = [name for name in VALUES if name in trials and trials[name].notna().any()]
    check_numeric(trials, values)
    check_columns(trials, by or ())
    trials = completed(trials)
    table, number = grouped(trials, settings(trials) if by is None else by)
    table["num_trials"] = np.bincount(number, minlength=len(table))
    for name in values:
        numbers = trials[name].to_numpy(dtype=np.float64, na_value=np.nan)
        columns = _statistics(numbers, number, len(table), confidence, num_resamples, seed)
        for suffix, column in zip(("mean", "sd", "low", "high"), columns, strict=True):
            table[f"{name}_{suffix}"] = column
    if "trial" in trials:
        keys = pd.Series(trials["trial"].to_numpy()).groupby(number).agg(" ".join)
        table["trials"] = keys.reindex(range(len(table))).to_numpy()
    return table


def rows_by_size(number: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return, for each size, the groups of that size and the places of their members (groups, size)."""
    order = np.argsort(number, kind="stable")
    groups, first, sizes = np.unique(number[order], return_index=True, return_counts=True)
    return [
        (groups[sizes == size], order[first[sizes == size][:, None] + np.arange(size)])
        for size in np.unique(sizes)
    ]


def _statistics(
    values: NDArray[np.float64],
    number: NDArray[np.int64],
    num_groups: int,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return mean, standard deviation, low and high of each group, (4, groups); NaN where there is none."""
    result = np.full((4, num_groups), np.nan)
    there = np.flatnonzero(~np.isnan(values))
    for groups, places in rows_by_size(number[there]):
        members = values[there][places]
        result[0, groups] = mean_of(members)
        if members.shape[1] > 1:
            result[1, groups] = members.std(axis=1, ddof=1)
        result[2:, groups] = mean_interval(
            members, confidence=confidence, num_resamples=num_resamples, seed=seed
        )
    return result


def mean_of(members: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over axis 1, exactly the value itself where all are equal.

    Otherwise two configurations of one sparsity could differ in its last bit, and one dominate the other.
    """
    first = members[:, :1]
    return np.asarray(first[:, 0] + (members - first).mean(axis=1))
