"""`distsparse summary`: each configuration over its seeds."""

from __future__ import annotations

import argparse
import math

import pandas as pd

from distsparse.cli import tables
from distsparse.results import summarize

EPILOG = """\
examples:
  distsparse summary results
  distsparse summary results --values accuracy,latency_ms --by method.name,method.sparsity --csv table.csv
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``summary``."""
    parser = commands.add_parser(
        "summary",
        help="print mean, standard deviation and interval of each configuration over its seeds",
        description="Print a row for each configuration: how many completed trials it has, and the mean, "
        "standard deviation and bootstrap interval of each value over them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tables.add_source(parser)
    parser.add_argument(
        "--values",
        metavar="A,B",
        help="columns to summarise (default: accuracy, sparsity, latency_ms, wall_s)",
    )
    parser.add_argument(
        "--by", metavar="A,B", help="columns that make a configuration (default: all settings but the seed)"
    )
    parser.add_argument(
        "--confidence", metavar="C", type=float, default=0.95, help="of the intervals (default: 0.95)"
    )
    tables.add_csv(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the summary, and write it as CSV if asked to.

    Raises:
        ValueError: results that are not there or cannot be read, an unknown column, or a bad confidence.
    """
    trials = tables.read(args.directory, study=args.study)
    table = summarize(
        trials, tables.columns(args.values), by=tables.columns(args.by), confidence=args.confidence
    )
    print(tables.render(*_printed(table)))
    print(f"\n{len(table)} configurations of {int(table['num_trials'].sum())} completed trials")
    if args.csv:
        tables.write_csv(table, args.csv)
        print(f"wrote {args.csv}")


def _printed(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the summary with two columns of text for each value: mean ± sd, and the interval."""
    names = list(table.columns)
    printed = table[names[: names.index("num_trials") + 1]].copy()
    for value in (name.removesuffix("_mean") for name in names if name.endswith("_mean")):
        columns = [table[f"{value}_{part}"].tolist() for part in ("mean", "sd", "low", "high")]
        texts = [_text(*numbers) for numbers in zip(*columns, strict=True)]
        printed[value] = [text for text, _ in texts]
        printed[f"{value} interval"] = [interval for _, interval in texts]
    return printed, list(printed.columns)


def _text(mean: float, sd: float, low: float, high: float) -> tuple[str, str]:
    if math.isnan(sd):  # of one trial
        return tables.cell(mean), "-"
    return f"{mean:.4g} ± {sd:.2g}", f"[{low:.4g}, {high:.4g}]"
