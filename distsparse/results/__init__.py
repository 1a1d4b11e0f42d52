"""Results as Parquet tables, and their analysis as functions from data frame to data frame; no torch."""

from __future__ import annotations

from distsparse.results.choose import best_under
from distsparse.results.compaction import compact
from distsparse.results.compare import compare
from distsparse.results.configurations import completed, settings
from distsparse.results.files import replacing
from distsparse.results.hypervolume import hypervolume, knee_point, worst_values
from distsparse.results.importance import importance
from distsparse.results.loading import config_columns, load, studies
from distsparse.results.pareto import pareto_front
from distsparse.results.plots import pareto_plot
from distsparse.results.query import sql
from distsparse.results.replicated_front import front_of_means
from distsparse.results.report import write_report
from distsparse.results.schema import SCHEMA_VERSION, TABLES, Column
from distsparse.results.store import read_trial, remove_trial, write
from distsparse.results.summary import summarize

__all__ = [
    "SCHEMA_VERSION",
    "TABLES",
    "Column",
    "best_under",
    "compact",
    "compare",
    "completed",
    "config_columns",
    "front_of_means",
    "hypervolume",
    "importance",
    "knee_point",
    "load",
    "pareto_front",
    "pareto_plot",
    "read_trial",
    "remove_trial",
    "replacing",
    "settings",
    "sql",
    "studies",
    "summarize",
    "worst_values",
    "write",
    "write_report",
]
