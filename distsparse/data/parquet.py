"""The Parquet layout of public data hubs: a split's files, their image and label columns, and label names."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def find_split(folder: Path, split: str) -> tuple[Path, ...]:
    """Return the files of a split in order: ``train.parquet``, or its shards ``train-*-of-00002*.parquet``.

    They lie in the folder or in its ``data/`` subfolder.

    Raises:
        ValueError: no such folder, no Parquet files in it, none of this split, or a shard is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"data.path: no folder {str(folder)!r}")
    places = (folder, folder / "data")
    for place in places:
        whole = place / f"{split}.parquet"
        shards = sorted(place.glob(f"{split}-*.parquet"))
        if whole.is_file():
            return (whole,)
        if shards:
            _check_complete(shards)
            return tuple(shards)
    present = sorted(
        file.relative_to(folder).as_posix() for place in places for file in place.glob("*.parquet")
    )
    if not present:
        raise ValueError(f"data.path: no Parquet files in {str(folder)!r} or its data/ subfolder")
    raise ValueError(
        f"data.path: {str(folder)!r} has no {split}.parquet or {split}-*.parquet; it has {_listed(present)}"
    )


def _check_complete(shards: Sequence[Path]) -> None:
    """Raise unless shards named ``…-00000-of-00002…`` are all there, each once."""
    numbers = [re.search(r"-(\d+)-of-(\d+)", file.name) for file in shards]
    found = sorted((int(match[1]), int(match[2])) for match in numbers if match)
    if found and found != [(number, found[0][1]) for number in range(found[0][1])]:
        names = [file.name for file in shards]
        raise ValueError(
            f"data.path: {str(shards[0].parent)!r} should have {found[0][1]} shards; it has {_listed(names)}"
        )


def _listed(names: Sequence[str]) -> str:
    """Return at most eight names for a message of one line."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def read_columns(file: Path) -> tuple[pa.ChunkedArray, list[int]]:
    """Return a file's encoded images (binary) and its labels.

    Raises:
        ValueError: a file that cannot be read, a missing column, or a column of another type.
    """
    schema = read_schema(file)
    image_column = _column(file, schema, IMAGE_COLUMNS)
    label_column = _column(file, schema, LABEL_COLUMNS)
    if not pa.types.is_integer(schema.field(label_column).type):
        raise ValueError(
            f"{file}: column {label_column!r} is {schema.field(label_column).type}; allowed: integers"
        )
    try:
        table = pq.read_table(file, columns=[image_column, label_column], partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: cannot be read as Parquet: {_first_line(error)}") from None
    labels = table[label_column].to_pylist()
    if None in labels:
        raise ValueError(f"{file}: row {labels.index(None)} has no label in column {label_column!r}")
    return _encoded(file, image_column, table[image_column]), labels


def read_schema(file: Path) -> pa.Schema:
    """Return a file's Arrow schema.

    Raises:
        ValueError: the file cannot be read as Parquet.
    """
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: cannot be read as Parquet: {_first_line(error)}") from None


def label_names(file: Path) -> list[str] | None:
    """Return the class names that a file's schema metadata gives, or None.

    Either ``label_names``, a JSON list, or the hub's ``huggingface`` entry with a ``ClassLabel`` feature.

    Raises:
        ValueError: the file cannot be read, or its metadata is no JSON.
    """
    schema = read_schema(file)
    metadata = schema.metadata or {}
    try:
        if b"label_names" in metadata:
            return [str(name) for name in json.loads(metadata[b"label_names"])]
        info: dict[str, Any] = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: the schema's metadata is no JSON: {_first_line(error)}") from None
    feature = info.get("info", {}).get("features", {}).get(_column(file, schema, LABEL_COLUMNS), {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return None if names is None else [str(name) for name in names]


def _column(file: Path, schema: pa.Schema, allowed: Sequence[str]) -> str:
    """Return the first allowed column that the file has."""
    for name in allowed:
        if name in schema.names:
            return name
    raise ValueError(
        f"{file}: needs a column {' or '.join(allowed)}; it has {_listed(schema.names) or 'none'}"
    )


def _encoded(file: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the binary values of an image column, which is binary or a struct with a binary ``bytes``."""
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise ValueError(
            f"{file}: column {name!r} is {kind}; allowed: binary, or struct<bytes: binary, path: string>"
        )
    return column


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
