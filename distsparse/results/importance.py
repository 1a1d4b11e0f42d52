"""Which setting matters: permutation importance in a random forest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from distsparse.results.configurations import check_numeric, completed, settings

FOLDS = 5
MIN_TRIALS = 20


def importance(
    trials: pd.DataFrame,
    value: str = "accuracy",
    *,
    num_trees: int = 200,
    num_repeats: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Return a row for each setting, the one that matters most first.

    A forest predicts the value from the settings. ``importance`` is the fraction of the value's variance that
    it no longer explains once a setting's column is shuffled, on trials that it was not fitted to (mean of
    five folds, ``num_repeats`` shuffles each); ``sd`` is over folds and shuffles. ``explained`` is what it
    explains of those trials, R²: where that is low, the importances say little. A setting that can be guessed
    from another one shares its importance with it. Null (a method without the parameter) is a value of its
    own. (Breiman, Random forests, 2001, section 10.)

    Raises:
        ValueError: an unknown column or one that is not numeric, fewer than 20 completed trials with a value,
            or no setting that differs between them.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import KFold

    check_numeric(trials, [value])
    trials = completed(trials)
    trials = trials[trials[value].notna()]
    if len(trials) < MIN_TRIALS:
        raise ValueError(
            f"{len(trials)} completed trials with {value}: importance needs {MIN_TRIALS} or more"
        )
    # A member's number stands for nothing that it was trained with.
    names = [name for name in settings(trials) if not name.startswith("population.")]
    if not names:
        raise ValueError("every trial has the same settings: nothing to weigh")
    inputs = pd.DataFrame({name: _numbers(trials[name]) for name in names})
    outcome = trials[value].to_numpy(dtype=np.float64)
    drops, scores = [], []
    for fitted, held_out in KFold(FOLDS, shuffle=True, random_state=seed).split(inputs):
        forest: Any = RandomForestRegressor(num_trees, random_state=seed)
        forest.fit(inputs.iloc[fitted], outcome[fitted])
        scores.append(forest.score(inputs.iloc[held_out], outcome[held_out]))
        shuffled: Any = permutation_importance(
            forest, inputs.iloc[held_out], outcome[held_out], n_repeats=num_repeats, random_state=seed
        )
        drops.append(shuffled.importances)
    values = np.concatenate(drops, axis=1)
    table = pd.DataFrame(
        {
            "setting": names,
            "importance": values.mean(axis=1),
            "sd": values.std(axis=1, ddof=1),
            "explained": float(np.mean(scores)),
        }
    )
    return table.sort_values("importance", ascending=False, kind="stable", ignore_index=True)


def _numbers(values: pd.Series[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a column as a forest reads it: numbers as they are, categories by code, null as NaN."""
    if is_numeric_dtype(values) and not is_bool_dtype(values):
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    codes = pd.factorize(values, sort=True)[0].astype(np.float64)
    return np.where(codes < 0, np.nan, codes)
