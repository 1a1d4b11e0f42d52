"""`distsparse pareto`: the trials that no other trial beats."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from distsparse.cli import tables
from distsparse.results import pareto_front, pareto_plot

COLOR = "method.name"
EPILOG = """\
example:
  distsparse pareto results --maximize accuracy --maximize sparsity --minimize latency_ms --plot front.png
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``pareto``."""
    parser = commands.add_parser(
        "pareto",
        help="print the Pareto front of the trials",
        description="Print the completed trials that no other trial beats: none is at least as good in every "
        "objective and better in one. Any numeric column is an objective; repeat the options for several.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tables.add_source(parser)
    parser.add_argument(
        "--maximize", metavar="COL", action="append", default=[], help="an objective, more is better"
    )
    parser.add_argument(
        "--minimize", metavar="COL", action="append", default=[], help="an objective, less is better"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw trials and front, a panel per pair (.png, .pdf, .svg)"
    )
    parser.add_argument("--csv", metavar="FILE", help="also write the front, with every column")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the front, best in the first objective first; draw it and write it as CSV if asked to.

    Raises:
        ValueError: results that are not there or cannot be read, or objectives that are no numeric columns.
    """
    trials = tables.read(args.directory, study=args.study)
    completed, failed = tables.split(trials)
    front = pareto_front(completed, maximize=args.maximize, minimize=args.minimize)
    objectives = [*args.maximize, *args.minimize]
    front = front.sort_values(objectives[0], ascending=not args.maximize, kind="stable")
    settings = [name for name in tables.varying(completed) if name not in objectives]
    print(tables.render(front, ["trial", *settings, *objectives]))
    print(f"\n{_summary(completed, front, objectives)}")
    if len(failed):
        print(f"{len(failed)} failed trials are not considered")
    if args.plot:
        color = COLOR if COLOR in completed else None
        plot = pareto_plot(
            completed, maximize=args.maximize, minimize=args.minimize, color=color, path=Path(args.plot)
        )
        print(f"wrote {plot}")
    if args.csv:
        tables.write_csv(front, args.csv)
        print(f"wrote {args.csv}")


def _summary(completed: pd.DataFrame, front: pd.DataFrame, objectives: list[str]) -> str:
    text = f"{len(front)} of {len(completed)} completed trials are on the front"
    missing = completed[objectives].isna()
    if not missing.to_numpy().any():
        return text
    names = ", ".join(name for name in objectives if missing[name].any())
    return f"{text}; {int(missing.any(axis=1).sum())} without a value for {names} left out"
