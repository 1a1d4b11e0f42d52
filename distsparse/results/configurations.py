"""Which columns tell configurations apart, and which trials are replicates of one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_complex_dtype, is_numeric_dtype

from distsparse.results.loading import config_columns

# How often a run is saved, logged, measured or begun again makes no other configuration of it.
NOT_SETTINGS = (
    "checkpoint.",
    "latency.",
    "loggers.",
    "launch.min_workers",
    "launch.max_failures",
    "launch.timeout_s",
)


def completed(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that completed; all of a frame without a ``status``."""
    return trials[trials["status"] == "completed"] if "status" in trials else trials


def settings(trials: pd.DataFrame) -> list[str]:
    """Return the columns that tell configurations apart: study and configuration, without the seed.

    These are the columns with two values or more. One that is a single value or null (a parameter that some
    methods do not have) is among them only if it tells two trials apart that nothing else does.
    """
    candidates = ["study"] if "study" in trials else []
    candidates += [name for name in config_columns(trials) if not name.startswith(NOT_SETTINGS)]
    codes = {name: _codes(trials[name]) for name in candidates}
    chosen = [name for name in candidates if trials[name].nunique() > 1]
    groups = _combined([codes[name] for name in chosen], len(trials))
    for name in candidates:
        if name not in chosen:
            finer = _combined([groups, codes[name]], len(trials))
            if finer.max(initial=0) > groups.max(initial=0):
                chosen.append(name)
                groups = finer
    return [name for name in candidates if name in chosen]


def grouped(trials: pd.DataFrame, by: Sequence[str]) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Return the distinct values of some columns, sorted, and for each trial which of these rows is its own.

    Null is a value, the last.
    """
    if not len(trials) or not by:
        return pd.DataFrame(index=range(min(len(trials), 1))), np.zeros(len(trials), dtype=np.int64)
    frame = trials[list(by)].reset_index(drop=True)
    groups = frame.groupby(list(by), dropna=False, sort=True)
    number = np.asarray(groups.ngroup(), dtype=np.int64)
    first = np.unique(number, return_index=True)[1]
    return frame.iloc[first].reset_index(drop=True), number


def check_numeric(frame: pd.DataFrame, names: Iterable[str]) -> None:
    """Check that columns exist and hold numbers.

    Raises:
        ValueError: one does not; similar names are suggested.
    """
    names = list(names)
    check_columns(frame, names)
    for name in names:
        if not is_numeric_dtype(frame[name]) or is_complex_dtype(frame[name]):
            raise ValueError(f"column {name!r} is not numeric: {frame[name].dtype}")


def check_columns(frame: pd.DataFrame, names: Iterable[str]) -> None:
    """Check that columns exist.

    Raises:
        ValueError: one does not; similar names are suggested.
    """
    for name in names:
        if name not in frame.columns:
            close = difflib.get_close_matches(name, [str(column) for column in frame.columns], n=3)
            raise ValueError(f"unknown column {name!r}" + (f"; close: {', '.join(close)}" if close else ""))


def _codes(values: pd.Series) -> NDArray[np.int64]:
    return np.asarray(pd.factorize(values, use_na_sentinel=False)[0], dtype=np.int64)


def _combined(codes: Sequence[NDArray[np.int64]], length: int) -> NDArray[np.int64]:
    """Return one code per distinct combination of codes."""
    groups = np.zeros(length, dtype=np.int64)
    for code in codes:
        groups = np.asarray(pd.factorize(groups * (code.max(initial=0) + 1) + code)[0], dtype=np.int64)
    return groups
