"""Results as fixed-width text, and the arguments that name them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from distsparse.results import config_columns, load, replacing, studies

MAX_CELL = 28
MAX_ERROR = 120


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which results to read: DIR and --study."""
    parser.add_argument("directory", metavar="DIR", help="results folder, or the folder of one study")
    parser.add_argument("--study", metavar="STUDY", help="only this study (default: all in DIR)")


def read(directory: str, *, study: str | None, table: str = "trials") -> pd.DataFrame:
    """Load a table from a results folder, or only one study of it.

    Raises:
        ValueError: no such folder, study or table, nothing there yet, or a file that cannot be read.
    """
    if study is None:
        return load(directory, table)
    known = studies(directory)
    if study not in known:
        raise ValueError(
            f"--study = {study!r}: no such study in {directory}; there: {', '.join(known) or 'none'}"
        )
    below = Path(directory) / study
    return load(below if below.is_dir() else directory, table)


def split(trials: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the completed and the failed trials."""
    completed = trials["status"] == "completed"
    return trials[completed], trials[~completed]


def varying(trials: pd.DataFrame) -> list[str]:
    """Return what tells trials apart: study, seed and configuration columns with more than one value.

    A parameter that some methods do not have differs only where it has two values.
    """
    candidates = ["study", *config_columns(trials), "seed"]
    return [name for name in candidates if trials[name].nunique() > 1]


def check_columns(frame: pd.DataFrame, names: Iterable[str], option: str) -> None:
    """Check that a table has some columns.

    Raises:
        ValueError: naming the option, the column and the columns there are.
    """
    for name in names:
        if name not in frame.columns:
            raise ValueError(f"{option}: no column {name!r}; there are: {', '.join(frame.columns)}")


def render(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return columns of a frame as lines of fixed width: numbers to the right, long text cut."""
    blocks = []
    for name in columns:
        cells = [name, *(cell(value) for value in frame[name].tolist())]
        width = max(map(len, cells))
        right = is_numeric_dtype(frame[name])
        blocks.append([text.rjust(width) if right else text.ljust(width) for text in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*blocks, strict=True))


def render_failures(failed: pd.DataFrame) -> str:
    """Return a line per failed trial: its key and its error, cut to one line."""
    lines = [
        f"{row.trial}  {cut(row.error if isinstance(row.error, str) else 'no error recorded', MAX_ERROR)}"
        for row in failed[["trial", "error"]].itertuples(index=False)
    ]
    return "\n".join(["failed:", *lines])


def cell(value: Any) -> str:
    """Return a value as a short text: floats to four significant digits, '-' for none."""
    if value is None or pd.isna(value):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, pd.Timestamp):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return cut(str(value), MAX_CELL)


def cut(text: str, width: int) -> str:
    """Return text on one line, its end replaced by '...' if it is wider than ``width``."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def write_csv(frame: pd.DataFrame, path: str) -> None:
    """Write a frame as CSV, complete or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as file:
        file.write(frame.to_csv(index=False).encode())
