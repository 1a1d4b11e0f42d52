"""One immutable Parquet file per trial and table, written atomically, read as one data frame."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from distsparse.results.schema import IDENTITY, SCHEMA_VERSION, TABLES, columns_of, schema

STUDY_NAME = re.compile(r"[A-Za-z0-9-][A-Za-z0-9._-]*")
TRIAL_KEY = re.compile(r"[0-9a-f]{12}")
SORT_ORDER = ("study", "trial", "step", "layer")


def write(
    root: str | Path,
    *,
    study: str,
    trial: str,
    table: str,
    rows: Sequence[Mapping[str, Any]],
    config_columns: Mapping[str, pa.DataType] = MappingProxyType({}),
) -> Path:
    """Write a trial's rows of one table, replacing what it wrote before, and return the file.

    Keys that a row lacks become nulls; ``study`` and ``trial`` are filled in. The file is complete and on
    disk when it appears. Times must carry a time zone. Write ``trials`` last: its file says that the trial is
    over.

    Raises:
        ValueError: a study name that is not a plain folder name, or no such table.
    """
    assert TRIAL_KEY.fullmatch(trial), f"a trial's key is 12 hexadecimal characters, not {trial!r}"
    assert table != "trials" or len(rows) == 1, f"a trial has one row in trials, not {len(rows)}"
    columns = schema(table, config_columns)
    key = {"study": study, "trial": trial}
    for row in rows:
        assert row.keys() <= set(columns.names), f"not in {table}: {sorted(row.keys() - set(columns.names))}"
        assert all(row.get(name, value) == value for name, value in key.items()), (
            f"a row of another trial: {row}"
        )
    data = pa.Table.from_pylist([{**row, **key} for row in rows], schema=columns)
    path = _file(root, study, table, trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        pq.write_table(data, file, write_page_checksum=True)
    return path


def read_trial(
    root: str | Path, *, study: str, trial: str, table: str = "trials"
) -> list[dict[str, Any]] | None:
    """Return a trial's rows of one table, or None if it wrote none.

    Raises:
        ValueError: a bad study name, no such table, or a file that cannot be read.
    """
    columns_of(table)
    path = _file(root, study, table, trial)
    return list(_read(path).to_pylist()) if path.exists() else None


def remove_trial(root: str | Path, *, study: str, trial: str) -> None:
    """Remove a trial's rows from every table, its ``trials`` row first.

    Raises:
        ValueError: a bad study name.
    """
    for table in TABLES:
        _file(root, study, table, trial).unlink(missing_ok=True)


def load(path: str | Path, table: str | None = None) -> pd.DataFrame:
    """Return a table of every study under a results folder, of one study's folder, or of one table's folder.

    ``table`` is ``trials`` if not given, or the one whose folder ``path`` is. Rows are sorted by study,
    trial, step and layer. Integers and booleans with gaps have pandas' nullable types. In ``trials``, a
    configuration value without a column of its own gets one from the ``config`` JSON (lists stay JSON), and
    configuration columns that are null everywhere are left out.

    Raises:
        ValueError: no such folder or table, nothing there yet, or a file that cannot be read.
    """
    folder = _existing(path)
    is_table = folder.name in TABLES and not _studies(folder)
    table = table or (folder.name if is_table else "trials")
    columns_of(table)
    if is_table and table != folder.name:
        raise ValueError(f"table = {table!r}, but {path} is the folder of {folder.name!r}")
    folders = [folder] if is_table else [study / table for study in _studies(folder)]
    files = sorted(file for part in folders for file in part.glob("*.parquet") if file.name[0] not in "._")
    if not files:
        raise ValueError(f"no results in {path} yet: no trial has written to table {table!r}")
    try:
        data = pa.concat_tables(
            [schema(table).empty_table(), *map(_read, files)], promote_options="permissive"
        )
    except pa.ArrowException as error:
        raise ValueError(
            f"the files of {path} do not fit together, load one study at a time: {error}"
        ) from None
    if table == "trials":
        data = _arrange(_expand(data))
    frame = _to_pandas(data)
    order = [name for name in SORT_ORDER if name in frame]
    return frame.sort_values(order, kind="stable", ignore_index=True)


def studies(path: str | Path) -> list[str]:
    """Return the names of the studies in a results folder, sorted; a study's own folder gives its name.

    Raises:
        ValueError: no such folder.
    """
    return [folder.name for folder in _studies(_existing(path))]


def config_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns of a loaded ``trials`` table that are configuration, in their order."""
    fixed = {column.name for column in TABLES["trials"]}
    return [name for name in frame.columns if name not in fixed]


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends, and vanishes if the block raises."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # A rename is durable only once the folder is on disk too.
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file(root: str | Path, study: str, table: str, trial: str) -> Path:
    if not STUDY_NAME.fullmatch(study) or study in TABLES:
        raise ValueError(
            f"study = {study!r}: allowed are letters, digits, '.', '_' and '-', not beginning with '.' or "
            f"'_', and none of the names {', '.join(TABLES)}"
        )
    return Path(root) / study / table / f"{trial}.parquet"


def _existing(path: str | Path) -> Path:
    if not Path(path).is_dir():
        raise ValueError(f"no such results folder: {path}")
    return Path(path).resolve()


def _studies(folder: Path) -> list[Path]:
    """Return the study folders in a folder, or the folder if it is one: a study holds a folder of a table."""

    def is_study(candidate: Path) -> bool:
        return any((candidate / table).is_dir() for table in TABLES)

    if is_study(folder):
        return [folder]
    return sorted(child for child in folder.iterdir() if STUDY_NAME.fullmatch(child.name) and is_study(child))


def _read(file: Path) -> pa.Table:
    try:
        data = pq.ParquetFile(file, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file} cannot be read as Parquet; delete it to go on without: {reason}") from None
    version = (data.schema.metadata or {}).get(b"distsparse_schema_version")
    if version is None:
        raise ValueError(f"{file} was not written by distsparse: it has no schema version")
    if int(version) > SCHEMA_VERSION:
        raise ValueError(
            f"{file} has schema version {int(version)}, newer than {SCHEMA_VERSION}: "
            "a later distsparse can read it"
        )
    return data


def _expand(data: pa.Table) -> pa.Table:
    """Fill configuration values from the JSON wherever a trial has no column of its own for them."""
    configs = [dict(_flatten(json.loads(text))) if text else {} for text in data["config"].to_pylist()]
    fixed = {column.name for column in TABLES["trials"]}
    for name in dict.fromkeys(name for config in configs for name in config if name not in fixed):
        own = data[name].to_pylist() if name in data.column_names else [None] * len(data)
        values = [
            config.get(name) if value is None else value for value, config in zip(own, configs, strict=True)
        ]
        if name not in data.column_names:
            data = data.append_column(name, _infer(values))
        elif values != own:
            data = data.set_column(data.column_names.index(name), name, _infer(values))
    return data


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else value


def _infer(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except pa.ArrowException:  # one name, several kinds of value
        return pa.array(
            [v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string()
        )


def _arrange(data: pa.Table) -> pa.Table:
    """Put configuration columns behind the identity, without those that are null everywhere."""
    identity = [column.name for column in IDENTITY]
    fixed = [column.name for column in TABLES["trials"]]
    config = [n for n in data.column_names if n not in fixed and data[n].null_count < len(data)]
    return data.select([*identity, *config, *fixed[len(identity) :]])


def _to_pandas(data: pa.Table) -> pd.DataFrame:
    def nullable(kind: pa.DataType) -> Any:
        if pa.types.is_integer(kind):
            return pd.Int64Dtype()
        return pd.BooleanDtype() if pa.types.is_boolean(kind) else None

    frame: pd.DataFrame = data.to_pandas(types_mapper=nullable)
    for name, kind in zip(data.column_names, data.schema.types, strict=True):
        if nullable(kind) is not None and not data[name].null_count:
            frame[name] = frame[name].astype("int64" if pa.types.is_integer(kind) else "bool")
    return frame
