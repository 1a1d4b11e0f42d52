"""The best trials within limits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from distsparse.results.configurations import check_numeric, completed


def best_under(
    trials: pd.DataFrame,
    at_most: Mapping[str, float] | None = None,
    *,
    at_least: Mapping[str, float] | None = None,
    maximize: str | None = None,
    minimize: str | None = None,
) -> pd.DataFrame:
    """Return the completed rows within all limits, the best first: ``best_under(trials, {"latency_ms": 2})``.

    ``maximize`` (by default ``accuracy``) or ``minimize`` names what is best; equal rows keep their order. A
    row without a value for a limit or for the objective is left out. Works on :func:`.summarize`'s rows as
    well, whose columns are named ``accuracy_mean`` or, to be careful, ``accuracy_low``.

    Raises:
        ValueError: both ``maximize`` and ``minimize``, an unknown column, or one that is not numeric.
    """
    if maximize is not None and minimize is not None:
        raise ValueError(f"maximize = {maximize!r} and minimize = {minimize!r}: name one of them")
    objective = minimize or maximize or "accuracy"
    at_most, at_least = at_most or {}, at_least or {}
    check_numeric(trials, [objective, *at_most, *at_least])
    trials = completed(trials)
    allowed = trials[objective].notna().to_numpy(copy=True)
    for name, limit in at_most.items():
        allowed &= trials[name].to_numpy(dtype=np.float64, na_value=np.nan) <= limit
    for name, limit in at_least.items():
        allowed &= trials[name].to_numpy(dtype=np.float64, na_value=np.nan) >= limit
    return trials[allowed].sort_values(objective, ascending=minimize is not None, kind="stable")
