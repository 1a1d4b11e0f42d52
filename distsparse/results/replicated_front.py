"""The Pareto front of configurations, from the means of their replicates, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distsparse.results.configurations import check_columns, completed, grouped, settings
from distsparse.results.pareto import check_objectives, front_mask, has_values
from distsparse.results.summary import mean_of, rows_by_size


def front_of_means(
    trials: pd.DataFrame,
    *,
    maximize: Sequence[str] = (),
    minimize: Sequence[str] = (),
    by: Sequence[str] | None = None,
    num_resamples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Return a row for each configuration, with its means, and whether and how often it is on their front.

    ``on_front`` says whether no other configuration's means dominate, ``front_frequency`` in which fraction
    of the resamples: in each, every configuration draws as many of its own replicates as it has, with
    replacement (whole trials, so that objectives stay together). A configuration of one trial never moves
    itself: its frequency speaks of the others only. Trials without a value for every objective are left out.

    Raises:
        ValueError: as :func:`.pareto_front`; or an unknown column in ``by``.
    """
    objectives = [*maximize, *minimize]
    check_objectives(trials, objectives)
    check_columns(trials, by or ())
    trials = completed(trials)
    table, number = grouped(trials, settings(trials) if by is None else by)
    valid = has_values(trials, objectives)
    used, number = np.unique(number[valid], return_inverse=True)
    trials, table = trials[valid], table.iloc[used].reset_index(drop=True)
    signs = [-1] * len(maximize) + [1] * len(minimize)
    values = trials[objectives].to_numpy(dtype=np.float64)
    by_size = rows_by_size(number)
    rng = np.random.default_rng(seed)
    times = np.zeros(len(table))
    for _ in range(num_resamples):
        drawn = [(groups, _resampled(places, rng)) for groups, places in by_size]
        times += front_mask(_means(values, drawn, len(table)).T, signs)
    means = _means(values, by_size, len(table))
    table["num_trials"] = np.bincount(number, minlength=len(table))
    table[[f"{name}_mean" for name in objectives]] = means
    table["on_front"] = front_mask(means.T, signs)
    table["front_frequency"] = times / num_resamples
    if "trial" in trials:
        keys = pd.Series(trials["trial"].to_numpy()).groupby(number).agg(" ".join)
        table["trials"] = keys.reindex(range(len(table))).to_numpy()
    return table


def _resampled(places: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    return np.take_along_axis(places, rng.integers(0, places.shape[1], places.shape), axis=1)


def _means(
    values: NDArray[np.float64],
    by_size: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    num_groups: int,
) -> NDArray[np.float64]:
    """Return the means of (trials, objectives) over each group's members, (groups, objectives)."""
    means = np.empty((num_groups, values.shape[1]))
    for groups, places in by_size:
        means[groups] = mean_of(values[places])
    return means
