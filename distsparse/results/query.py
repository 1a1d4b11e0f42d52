"""SQL over the tables of a results folder, through DuckDB."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from distsparse.results.loading import load
from distsparse.results.schema import TABLES


def sql(query: str, path: str | Path) -> pd.DataFrame:
    """Return the answer to an SQL query over the tables of a results folder, named ``trials``, ``steps``, ….

    The tables are those of :func:`.load`; columns with a dot are quoted: ``select "method.name" from
    trials``. The query sees nothing but them: no file, no network.

    Raises:
        ValueError: DuckDB is not installed, the query names no table or is wrong, or as :func:`.load`.
    """
    try:
        import duckdb
    except ImportError:
        raise ValueError("SQL needs DuckDB: pip install 'distsparse[sql]'") from None
    used = [table for table in TABLES if re.search(rf"\b{table}\b", query, re.IGNORECASE)]
    if not used:
        raise ValueError(f"the query names no table; there are {', '.join(TABLES)}")
    with duckdb.connect(
        config={"python_scan_all_frames": False, "enable_external_access": False}
    ) as database:
        for table in used:
            database.register(table, load(path, table))
        try:
            answer: pd.DataFrame = database.sql(query).df()
        except duckdb.Error as error:
            raise ValueError(f"the query failed: {error}") from None
    return answer
