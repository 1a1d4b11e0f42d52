"""All files of a table, of one study or of many, as one data frame."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from distsparse.results.files import in_order, parquet_files, read_in
from distsparse.results.remote import Folder, is_uri, opened
from distsparse.results.schema import IDENTITY, TABLES, columns_of, schema
from distsparse.results.store import STUDY_NAME

READERS = 4
REMOTE_READERS = 32
ATTEMPTS = 5


def load(path: str | Path, table: str | None = None) -> pd.DataFrame:
    """Return a table of every study under a results folder, of one study's folder, or of one table's folder.

    ``table`` is ``trials`` if not given, or the one whose folder ``path`` is. Rows are sorted by study,
    trial, step and layer. Integers and booleans with gaps have pandas' nullable types. In ``trials``, a
    configuration value without a column of its own gets one from the ``config`` JSON (lists stay JSON), and
    configuration columns that are null everywhere are left out.

    Raises:
        ValueError: no such folder or table, nothing there yet, or a file that cannot be read.
    """
    folder = opened(path) if is_uri(path) else _existing(path)
    found = _studies(folder)
    is_table = folder.name in TABLES and not found
    table = table or (folder.name if is_table else "trials")
    columns_of(table)
    if is_table and table != folder.name:
        raise ValueError(f"table = {table!r}, but {path} is the folder of {folder.name!r}")
    folders = [folder] if is_table else [_child(study, table) for study in found]
    tables = _read_all(folders)
    if not tables:
        raise ValueError(f"no results in {path} yet: no trial has written to table {table!r}")
    try:
        data = pa.concat_tables([schema(table).empty_table(), *tables], promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(
            f"the files of {path} do not fit together, load one study at a time: {error}"
        ) from None
    data = in_order(data)
    if table == "trials":
        data = _arrange(_expand(data))
    return _to_pandas(data)


def studies(path: str | Path) -> list[str]:
    """Return the names of the studies in a results folder, sorted; a study's own folder gives its name.

    Raises:
        ValueError: no such folder.
    """
    folder = opened(path) if is_uri(path) else _existing(path)
    return [study.name for study in _studies(folder)]


def existing_studies(path: str | Path) -> list[Path]:
    """Return the folders of the studies in a results folder, sorted, or of the study that it is.

    Raises:
        ValueError: no such folder.
    """
    if is_uri(path):
        raise ValueError(f"{path}: an object store cannot exchange two folders: merge a copy on a local disk")
    return [study for study in _studies(_existing(path)) if isinstance(study, Path)]


def config_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns of a loaded ``trials`` table that are configuration, in their order."""
    fixed = {column.name for column in TABLES["trials"]}
    return [name for name in frame.columns if name not in fixed]


def _existing(path: str | Path) -> Path:
    if not Path(path).is_dir():
        raise ValueError(f"no such results folder: {path}")
    return Path(path).resolve()


def _studies(folder: Path | Folder) -> list[Path | Folder]:
    """Return the study folders in a folder, or the folder if it is one: a study holds a folder of a table."""
    names = _folders(folder)
    if TABLES.keys() & set(names):
        return [folder]
    children = [_child(folder, name) for name in names if STUDY_NAME.fullmatch(name)]
    return [child for child in children if TABLES.keys() & set(_folders(child))]


def _folders(folder: Path | Folder) -> list[str]:
    """Return the names of the folders in a folder, sorted."""
    if isinstance(folder, Folder):
        return folder.names(folders=True)
    return sorted(child.name for child in folder.iterdir() if child.is_dir())


def _child(folder: Path | Folder, name: str) -> Path | Folder:
    return folder.child(name) if isinstance(folder, Folder) else folder / name


def _read_all(folders: Sequence[Path | Folder]) -> list[pa.Table]:
    """Read every file of some tables' folders, beginning again if one was merged meanwhile."""
    for _ in range(ATTEMPTS):
        files = [(folder, file) for folder in folders for file in _complete(folder)]
        remote = any(isinstance(folder, Folder) for folder in folders)
        with (
            suppress(FileNotFoundError),
            ThreadPoolExecutor(REMOTE_READERS if remote else READERS) as readers,
        ):
            return list(readers.map(read_in, *zip(*files, strict=True))) if files else []
    raise ValueError(f"the files of {folders[0]} change faster than they can be read; try again")


def _complete(folder: Path | Folder) -> list[str]:
    """Return the names of the complete files of a table, sorted."""
    if isinstance(folder, Path):
        return [file.name for file in parquet_files(folder)]
    names = folder.names(folders=False)
    return [name for name in names if name.endswith(".parquet") and name[0] not in "._"]


def _expand(data: pa.Table) -> pa.Table:
    """Fill configuration values from the JSON wherever a trial has no column of its own for them."""
    texts = data["config"].to_pylist()
    names = _unfilled(data, texts)
    if names is not None and not names:
        return data
    configs = [dict(_flatten(json.loads(text))) if text else {} for text in texts]
    fixed = {column.name for column in TABLES["trials"]}
    for name in dict.fromkeys(name for config in configs for name in config if name not in fixed):
        if names is not None and name not in names:
            continue
        own = data[name].to_pylist() if name in data.column_names else [None] * len(data)
        values = [
            config.get(name) if value is None else value for value, config in zip(own, configs, strict=True)
        ]
        if name not in data.column_names:
            data = data.append_column(name, _infer(values))
        elif values != own:
            data = data.set_column(data.column_names.index(name), name, _infer(values))
    return data


def _unfilled(data: pa.Table, texts: Sequence[str | None]) -> set[str] | None:
    """Return the names that have a value in some JSON and none in its trial's column; None if unknown.

    Almost always there are none, and Arrow's reader finds that out many times faster than json.
    """
    lines = "\n".join(text or "{}" for text in texts).encode()
    options = pa.json.ReadOptions(block_size=max(len(lines), 1))
    try:
        parsed = pa.json.read_json(pa.BufferReader(lines), read_options=options)
    except pa.ArrowException:  # one name, several kinds of value
        return None
    if len(parsed) != len(data):
        return None
    while any(pa.types.is_struct(kind) for kind in parsed.schema.types):
        parsed = parsed.flatten()
    fixed = {column.name for column in TABLES["trials"]}
    return {
        name
        for name in set(parsed.column_names) - fixed
        if parsed[name].null_count < len(parsed)
        and (
            name not in data.column_names
            or pc.any(pc.and_(pc.is_null(data[name]), pc.is_valid(parsed[name]))).as_py()
        )
    }


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
