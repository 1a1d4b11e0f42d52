"""A trial's rows: one Parquet file per trial and table, until many of them are merged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distsparse.results.files import (
    MAX_PREFIX,
    in_order,
    locked,
    part_name,
    read_file,
    read_in,
    rows_of,
    write_file,
)
from distsparse.results.remote import Folder, is_uri, opened
from distsparse.results.schema import TABLES, columns_of, schema

STUDY_NAME = re.compile(r"[A-Za-z0-9-][A-Za-z0-9._-]*")
TRIAL_KEY = re.compile(r"[0-9a-f]{12}")


def write(
    root: str | Path,
    *,
    study: str,
    trial: str,
    table: str,
    rows: Sequence[Mapping[str, Any]],
    config_columns: Mapping[str, pa.DataType] = MappingProxyType({}),
) -> Path | str:
    """Write a trial's rows of one table, replacing what it wrote before, and return the file.

    Keys that a row lacks become nulls; ``study`` and ``trial`` are filled in. The file is complete and on
    disk when it appears. Times must carry a time zone. Write ``trials`` last: its file says that the trial is
    over.

    Raises:
        ValueError: a study name that is not a plain folder name, no such table, or a trial whose
            rows are in a merged file on an object store: they cannot be replaced there.
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
    if is_uri(root):
        return _put(opened(root).child(study).child(table), trial, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, exclusive=False):
        if _merged(path.parent, trial) is None:
            return write_file(data, path)
    with locked(path.parent, exclusive=True):
        merged = _merged(path.parent, trial)  # again: between the locks it may have been merged anew
        return write_file(data, path) if merged is None else _replace_rows(merged, trial, data)


def read_trial(
    root: str | Path, *, study: str, trial: str, table: str = "trials"
) -> list[dict[str, Any]] | None:
    """Return a trial's rows of one table, or None if it wrote none.

    Raises:
        ValueError: a bad study name, no such table, or a file that cannot be read.
    """
    columns_of(table)
    path = _file(root, study, table, trial)
    if is_uri(root):
        return _get(opened(root).child(study).child(table), trial)
    if not path.parent.is_dir():
        return None
    with locked(path.parent, exclusive=False):
        if path.exists():
            return list(read_file(path).to_pylist())
        merged = _merged(path.parent, trial)
        return None if merged is None else list(rows_of(read_file(merged), trial).to_pylist())


def remove_trial(root: str | Path, *, study: str, trial: str) -> None:
    """Remove a trial's rows from every table, its ``trials`` row first.

    Raises:
        ValueError: a bad study name.
    """
    for table in TABLES:
        path = _file(root, study, table, trial)
        if is_uri(root):
            _delete(opened(root).child(study).child(table), trial)
        elif path.parent.is_dir():
            with locked(path.parent, exclusive=True):
                path.unlink(missing_ok=True)
                if merged := _merged(path.parent, trial):
                    _replace_rows(merged, trial, None)


def _merged(folder: Path, trial: str) -> Path | None:
    """Return the merged file that holds rows of a trial, or None."""
    for length in range(MAX_PREFIX + 1):
        file = folder / part_name(trial[:length])
        if file.exists():
            keys = pq.ParquetFile(file).read(columns=["trial"])["trial"]
            return file if pc.any(pc.equal(keys, trial)).as_py() else None
    return None


def _replace_rows(merged: Path, trial: str, rows: pa.Table | None) -> Path:
    """Write a merged file anew with other rows of a trial, or none of it."""
    data = read_file(merged)
    data = data.filter(pc.not_equal(data["trial"], trial))
    if rows is not None:
        data = in_order(pa.concat_tables([data, rows], promote_options="permissive"))
    return write_file(data, merged)


def _file(root: str | Path, study: str, table: str, trial: str) -> Path:
    if not STUDY_NAME.fullmatch(study) or study in TABLES:
        raise ValueError(
            f"study = {study!r}: allowed are letters, digits, '.', '_' and '-', not beginning with '.' or "
            f"'_', and none of the names {', '.join(TABLES)}"
        )
    return Path(root) / study / table / f"{trial}.parquet"


def _put(folder: Folder, trial: str, data: pa.Table) -> str:
    """Write a trial's rows on an object store."""
    for name in folder.existing([part_name(trial[:length]) for length in range(MAX_PREFIX + 1)]):
        if len(rows_of(read_in(folder, name), trial)):
            raise ValueError(
                f"trial {trial} is in {folder}/{name}, which cannot be rewritten safely on an object store"
            )
    content = pa.BufferOutputStream()
    pq.write_table(data, content, write_page_checksum=True)
    folder.put(f"{trial}.parquet", content.getvalue())
    return f"{folder}/{trial}.parquet"


def _get(folder: Folder, trial: str) -> list[dict[str, Any]] | None:
    names = [f"{trial}.parquet", *(part_name(trial[:length]) for length in range(MAX_PREFIX + 1))]
    for name in folder.existing(names):
        rows = read_in(folder, name)
        if name == names[0]:
            return list(rows.to_pylist())
        if len(rows := rows_of(rows, trial)):
            return list(rows.to_pylist())
    return None


def _delete(folder: Folder, trial: str) -> None:
    folder.remove(f"{trial}.parquet")
    if _get(folder, trial) is not None:
        raise ValueError(
            f"trial {trial} is in a merged file of {folder}: remove it in a copy on a local disk"
        )
