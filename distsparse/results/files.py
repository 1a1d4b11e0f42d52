"""Parquet files on a disk or an object store: written atomically, read with their checksums verified."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distsparse.results.remote import Folder
from distsparse.results.schema import SCHEMA_VERSION

# Merged files are named by the first digits of the keys they hold, so that a key alone finds its file.
MAX_PREFIX = 3
SORT_ORDER = ("study", "trial", "step", "layer")


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


@contextmanager
def locked(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold a table's folder for a block: writers share it, what rearranges files has it alone.

    The system lets go of it when the process ends, however it ends. On a file system without locks, or on
    which nothing more can be written, a block that need not be alone runs without.

    Raises:
        OSError: ``exclusive``, and there are no locks.
    """
    with ExitStack() as stack:
        try:
            handle = stack.enter_context((folder.parent / f".{folder.name}.lock").open("w"))
            fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        except OSError:
            if exclusive:
                raise
        yield


def part_name(prefix: str) -> str:
    """Return the name of the file that holds the merged trials whose keys begin with a prefix."""
    return f"merged-{prefix}.parquet" if prefix else "merged.parquet"


def parquet_files(folder: Path) -> list[Path]:
    """Return the complete files of a table, sorted by name."""
    return sorted(file for file in folder.glob("*.parquet") if file.name[0] not in "._")


def write_file(data: pa.Table, path: Path) -> Path:
    """Write a table to a file, complete and on disk when it appears."""
    with replacing(path) as file:
        pq.write_table(data, file, write_page_checksum=True)
    return path


def read_file(file: Path | pa.BufferReader, *, shown: str | None = None) -> pa.Table:
    """Return a file's rows; errors call it ``shown``.

    Raises:
        ValueError: it cannot be read, or distsparse, or this version of it, did not write it.
        FileNotFoundError: it is not there.
    """
    shown = shown or str(file)
    try:
        data = pq.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{shown} cannot be read as Parquet; delete it to go on without: {reason}") from None
    version = (data.schema.metadata or {}).get(b"distsparse_schema_version")
    if version is None:
        raise ValueError(f"{shown} was not written by distsparse: it has no schema version")
    if int(version) > SCHEMA_VERSION:
        raise ValueError(
            f"{shown} has schema version {int(version)}, newer than {SCHEMA_VERSION}: "
            "a later distsparse can read it"
        )
    return data


def read_in(folder: Path | Folder, name: str) -> pa.Table:
    """Return the rows of a file in a folder; errors as of :func:`read_file`."""
    if isinstance(folder, Path):
        return read_file(folder / name)
    return read_file(folder.read(name), shown=f"{folder}/{name}")


def rows_of(data: pa.Table, trial: str) -> pa.Table:
    """Return a trial's rows."""
    return data.filter(pc.equal(data["trial"], trial))


def in_order(data: pa.Table) -> pa.Table:
    """Return the rows sorted by study, trial, step and layer."""
    keys = [_ranks(data[name]) for name in SORT_ORDER if name in data.column_names]
    order = np.lexsort(keys[::-1])
    return data if (order[1:] > order[:-1]).all() else data.take(order)


def _ranks(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the rank of each value; null is the last."""
    encoded = column.combine_chunks().dictionary_encode()
    rank = pc.rank(encoded.dictionary, sort_keys="ascending", tiebreaker="dense").to_numpy()
    places = encoded.indices.fill_null(len(rank)).to_numpy(zero_copy_only=False)
    return np.asarray(np.append(rank, len(rank) + 1)[places], dtype=np.int64)
