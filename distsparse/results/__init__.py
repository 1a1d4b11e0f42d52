"""Results as Parquet tables, their Pareto front, and its plot: pandas and pyarrow, no torch."""

from __future__ import annotations

from distsparse.results.pareto import pareto_front
from distsparse.results.plots import pareto_plot
from distsparse.results.schema import SCHEMA_VERSION, TABLES, Column
from distsparse.results.store import config_columns, load, read_trial, remove_trial, replacing, studies, write

__all__ = [
    "SCHEMA_VERSION",
    "TABLES",
    "Column",
    "config_columns",
    "load",
    "pareto_front",
    "pareto_plot",
    "read_trial",
    "remove_trial",
    "replacing",
    "studies",
    "write",
]
