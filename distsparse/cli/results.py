"""`distsparse results`: print a table of results."""

from __future__ import annotations

import argparse

import pandas as pd

from distsparse.cli import tables
from distsparse.results import TABLES, sql

OUTCOMES = ("accuracy", "sparsity", "latency_ms", "wall_s")
EPILOG = """\
examples:
  distsparse results results --sort accuracy --reverse
  distsparse results results --study delta_T --columns trial,method.delta_T,accuracy --csv delta_T.csv
  distsparse results results/delta_T --table rewires
  distsparse results results --sql 'select "method.name", avg(accuracy) from trials group by all'
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``results``."""
    parser = commands.add_parser(
        "results",
        help="print a table of results",
        description="Print the trials of a results folder with the settings that differ between them; failed "
        "trials come last, with their error.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tables.add_source(parser)
    parser.add_argument(
        "--table", choices=list(TABLES), default="trials", help="which table (default: trials)"
    )
    parser.add_argument(
        "--columns", metavar="A,B", help="columns to print and to write (default: the telling ones)"
    )
    parser.add_argument(
        "--sql",
        metavar="QUERY",
        help="print the answer to a query over the tables instead (needs DuckDB: distsparse[sql])",
    )
    parser.add_argument("--sort", metavar="COL", help="sort by this column, smallest first")
    parser.add_argument("--reverse", action="store_true", help="with --sort: largest first")
    parser.add_argument(
        "--csv", metavar="FILE", help="also write the rows, with every column unless --columns is given"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print a table, and write it as CSV if asked to.

    Raises:
        ValueError: results that are not there or cannot be read, or an unknown column.
    """
    if args.sql:
        frame = sql(args.sql, tables.source(args.directory, study=args.study))
        print(tables.render(frame, list(frame.columns)))
        if args.csv:
            tables.write_csv(frame, args.csv)
            print(f"wrote {args.csv}")
        return
    frame = tables.read(args.directory, study=args.study, table=args.table)
    if args.reverse and not args.sort:
        raise ValueError("--reverse needs --sort COL")
    if args.sort:
        tables.check_columns(frame, [args.sort], "--sort")
        frame = frame.sort_values(args.sort, ascending=not args.reverse, kind="stable", na_position="last")
    chosen = _chosen(args.columns, frame)
    if args.table == "trials":
        _print_trials(frame, chosen)
    else:
        print(tables.render(frame, chosen or _telling(frame)))
        print(f"\n{len(frame)} rows of {frame['trial'].nunique()} trials")
    if args.csv:
        tables.write_csv(frame[chosen] if chosen else frame, args.csv)
        print(f"wrote {args.csv}")


def _chosen(columns: str | None, frame: pd.DataFrame) -> list[str]:
    if columns is None:
        return []
    names = [name.strip() for name in columns.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--columns = {columns!r}: names no column")
    tables.check_columns(frame, names, "--columns")
    return list(dict.fromkeys(names))


def _telling(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if name != "study" or frame["study"].nunique() > 1]


def _print_trials(trials: pd.DataFrame, chosen: list[str]) -> None:
    completed, failed = tables.split(trials)
    columns = chosen or ["trial", "status", *tables.varying(trials), *OUTCOMES]
    print(tables.render(pd.concat([completed, failed]), columns))
    if len(failed):
        print(f"\n{tables.render_failures(failed)}")
    print(f"\n{len(trials)} trials: {len(completed)} completed, {len(failed)} failed")
