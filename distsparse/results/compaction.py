"""Many small files merged into few, without a moment at which a row is missing or there twice."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from distsparse.results.files import (
    MAX_PREFIX,
    in_order,
    locked,
    parquet_files,
    part_name,
    read_file,
    write_file,
)
from distsparse.results.loading import existing_studies
from distsparse.results.schema import TABLES
from distsparse.results.store import TRIAL_KEY

# Writing a merged trial again writes its whole file again, so files do not grow without bound.
MAX_TRIALS_PER_FILE = 8192
AT_FDCWD = -100
RENAME_EXCHANGE = 2


def compact(path: str | Path, *, minimum: int = 2) -> pd.DataFrame:
    """Merge the files of every table of a results folder or of one study; return what was done.

    Each table's folder is built anew beside it and takes its place in one step, the exchange of two folders:
    whoever reads, and whenever this process is killed, finds the old files or the new ones. Trials that are
    written meanwhile wait; a trial written again later replaces its rows in the merged file. A table in
    memory at once is what it needs. A later call merges what was written since.

    Args:
        path: a results folder, or one study's.
        minimum: tables with fewer files of single trials are left as they are.

    Returns:
        A row per table: ``study``, ``table``, and its number of files ``files_before`` and ``files_after``.

    Raises:
        ValueError: no such folder, a file that cannot be read or is not distsparse's, or a file system that
            cannot exchange two folders; the table is as it was.
    """
    rows = []
    for study in existing_studies(path):
        for folder in (study / table for table in TABLES):
            if folder.is_dir():
                before = len(parquet_files(folder))
                _compact_table(folder, minimum)
                after = len(parquet_files(folder))
                rows.append((study.name, folder.name, before, after))
    return pd.DataFrame(rows, columns=["study", "table", "files_before", "files_after"])


def _compact_table(folder: Path, minimum: int) -> None:
    with locked(folder, exclusive=True):
        building = folder.with_name(f".{folder.name}.compacting")
        # What a killed call left: half a new folder, or the old one. The table itself is complete.
        shutil.rmtree(building, ignore_errors=True)
        files = parquet_files(folder)
        single = {file.stem for file in files if TRIAL_KEY.fullmatch(file.stem)}
        if len(single) < max(minimum, 1):
            return
        known = {f"{key}.parquet" for key in single}
        for file in files:
            if file.name not in known and not file.name.startswith("merged"):
                raise ValueError(f"{file} is no trial's: move it away to merge the others")
        try:
            data = pa.concat_tables(map(read_file, files), promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(f"the files of {folder} do not fit together: {error}") from None
        write_parts(building, data)
        _exchange(building, folder)
        shutil.rmtree(building)


def write_parts(folder: Path, data: pa.Table) -> None:
    """Write a table's rows as merged files into a new folder, all on disk when this returns."""
    folder.mkdir(parents=True)
    data = in_order(data)
    num_trials = pc.count_distinct(data["trial"]).as_py()
    length = next(
        n for n in range(MAX_PREFIX + 1) if num_trials <= MAX_TRIALS_PER_FILE * 16**n or n == MAX_PREFIX
    )
    prefixes = pc.utf8_slice_codeunits(data["trial"], 0, length)
    for prefix in pc.unique(prefixes).to_pylist() or [""]:
        write_file(data.filter(pc.equal(prefixes, prefix)), folder / part_name(prefix))


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change names in one step (Linux), and put that on disk.

    Raises:
        ValueError: this system or file system cannot.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = (AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    if function is None or function(*names) != 0:
        shutil.rmtree(one)
        reason = os.strerror(ctypes.get_errno()) if function is not None else "no renameat2"
        raise ValueError(
            f"the file system of {other} cannot exchange two folders in one step ({reason}): "
            "merge a copy on a local disk"
        )
    descriptor = os.open(one.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
