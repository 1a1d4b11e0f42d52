"""Results as fixed-width text, and the arguments that name them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from distsparse.results import load, replacing, settings, studies
from distsparse.results.remote import below, is_uri, opened

MAX_CELL = 28
MAX_ERROR = 120


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which results to read: DIR and --study."""
    parser.add_argument("directory", metavar="DIR", help="results folder, or the folder of one study")
    parser.add_argument("--study", metavar="STUDY", help="only this study (default: all in DIR)")


def add_csv(parser: argparse.ArgumentParser) -> None:
    """Add the option --csv."""
    parser.add_argument("--csv", metavar="FILE", help="also write the rows as CSV, in full precision")


def add_objectives(parser: argparse.ArgumentParser) -> None:
    """Add the options --maximize and --minimize, which may be repeated."""
    parser.add_argument(
        "--maximize", metavar="COL", action="append", default=[], help="an objective, more is better"
    )
    parser.add_argument(
        "--minimize", metavar="COL", action="append", default=[], help="an objective, less is better"
    )


def columns(text: str | None) -> list[str] | None:
    """Return the names in ``a,b``; None for None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def limits(assignments: Sequence[str], option: str) -> dict[str, float]:
    """Return ``["latency_ms=2"]`` as ``{"latency_ms": 2.0}``.

    Raises:
        ValueError: no equals sign, or not a number behind it.
    """
    values = {}
    for assignment in assignments:
        name, _, number = assignment.partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            raise ValueError(f"{option} {assignment}: must be COL=NUMBER, for example latency_ms=2") from None
    return values


def read(directory: str, *, study: str | None, table: str = "trials") -> pd.DataFrame:
    """Load a table from a results folder, or only one study of it.

    Raises:
        ValueError: no such folder, study or table, nothing there yet, or a file that cannot be read.
    """
    return load(source(directory, study=study), table)


def source(directory: str, *, study: str | None) -> str:
    """Return the folder that DIR and --study name.

    Raises:
        ValueError: no such folder or study.
    """
    if study is None:
        return directory
    known = studies(directory)
    if study not in known:
        raise ValueError(
            f"--study = {study!r}: no such study in {directory}; there: {', '.join(known) or 'none'}"
        )
    if is_uri(directory):
        return directory if opened(directory).name == study else below(directory, study)
    folder = Path(directory) / study
    return str(folder) if folder.is_dir() else directory


def split(trials: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the completed and the failed trials."""
    completed = trials["status"] == "completed"
    return trials[completed], trials[~completed]


def varying(trials: pd.DataFrame) -> list[str]:
    """Return what tells trials apart: study and settings with more than one value, and the seed."""
    return [*settings(trials), *(["seed"] if trials["seed"].nunique() > 1 else [])]


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
    if isinstance(value, bool):
        return "yes" if value else "no"
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
