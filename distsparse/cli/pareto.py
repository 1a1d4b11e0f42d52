"""`distsparse pareto`: the trials that no other trial beats."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from distsparse.cli import tables
from distsparse.results import (
    front_of_means,
    hypervolume,
    knee_point,
    pareto_front,
    pareto_plot,
    worst_values,
)

COLOR = "method.name"
EPILOG = """\
examples:
  distsparse pareto results --maximize accuracy --maximize sparsity --minimize latency_ms --plot front.png
  distsparse pareto results --maximize accuracy --maximize sparsity --means
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
    tables.add_objectives(parser)
    parser.add_argument(
        "--means",
        action="store_true",
        help="the front of the means over seeds, and how often each configuration is on it under resampling",
    )
    parser.add_argument(
        "--reference",
        metavar="COL=X",
        action="append",
        default=[],
        help="a reference value of each objective for the hypervolume (default: the worst of all trials)",
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
    objectives = {"maximize": args.maximize, "minimize": args.minimize}
    reference = tables.limits(args.reference, "--reference")
    front = _of_means(completed, args) if args.means else _of_trials(completed, args)
    quality = _quality(completed, objectives, reference)
    print(f"\n{_summary(completed, front, args)}{quality}")
    if len(failed):
        print(f"{len(failed)} failed trials are not considered")
    if args.plot:
        color = COLOR if COLOR in completed else None
        plot = pareto_plot(completed, **objectives, color=color, path=Path(args.plot))
        print(f"wrote {plot}")
    if args.csv:
        tables.write_csv(front, args.csv)
        print(f"wrote {args.csv}")


def _of_trials(completed: pd.DataFrame, args: argparse.Namespace) -> pd.DataFrame:
    front = pareto_front(completed, maximize=args.maximize, minimize=args.minimize)
    objectives = [*args.maximize, *args.minimize]
    front = front.sort_values(objectives[0], ascending=not args.maximize, kind="stable")
    settings = [name for name in tables.varying(completed) if name not in objectives]
    print(tables.render(front, ["trial", *settings, *objectives]))
    return front


def _of_means(completed: pd.DataFrame, args: argparse.Namespace) -> pd.DataFrame:
    """Return and print the configurations that are on the front, or were in some resample."""
    means = front_of_means(completed, maximize=args.maximize, minimize=args.minimize)
    objectives = [f"{name}_mean" for name in (*args.maximize, *args.minimize)]
    near = means[means["on_front"] | (means["front_frequency"] > 0)]
    near = near.sort_values(objectives[0], ascending=not args.maximize, kind="stable")
    print(tables.render(near, [name for name in near.columns if name != "trials"]))
    return near


def _summary(completed: pd.DataFrame, front: pd.DataFrame, args: argparse.Namespace) -> str:
    objectives = [*args.maximize, *args.minimize]
    if args.means:
        text = f"{int(front['on_front'].sum())} configurations are on the front of the means"
    else:
        text = f"{len(front)} of {len(completed)} completed trials are on the front"
    missing = completed[objectives].isna()
    if not missing.to_numpy().any():
        return text
    names = ", ".join(name for name in objectives if missing[name].any())
    return f"{text}; {int(missing.any(axis=1).sum())} without a value for {names} left out"


def _quality(
    completed: pd.DataFrame, objectives: Mapping[str, Sequence[str]], reference: dict[str, float]
) -> str:
    """Return the knee of the trials' front and its hypervolume, as a line; nothing for an empty front."""
    knee = knee_point(completed, **objectives)
    names = [name for group in objectives.values() for name in group]
    if knee.empty or len(names) < 2:
        return ""
    used = reference or worst_values(completed, **objectives)
    volume = hypervolume(completed, **objectives, reference=used)
    point = ", ".join(f"{name} {tables.cell(float(value))}" for name, value in used.items())
    return f"\nknee: trial {knee['trial'].item()}; hypervolume {volume:.4g} from {point}"
