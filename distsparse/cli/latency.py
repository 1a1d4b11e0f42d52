"""`distsparse latency`: measure trained networks again, here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from distsparse import results
from distsparse.cli import tables

if TYPE_CHECKING:
    from distsparse.config import RunConfig

SHOWN = ["trial", "format", "batch_size", "num_threads", "dtype", "p10_ms", "p50_ms", "p90_ms", "stable"]
EPILOG = """\
examples:
  distsparse latency results
  distsparse latency results/rigl --trial 3f2a90c1b7de --threads 1 4 --batch-sizes 1 8 64
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``latency``."""
    parser = commands.add_parser(
        "latency",
        help="measure the inference time of trained networks on this machine",
        description="Measure the networks of completed trials on this machine, dense and in CSR, one after "
        "another, and add the rows to the table `latencies`; measurements of other machines stay. "
        "Let nothing else run meanwhile: `stable` says whether the medians settled.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tables.add_source(parser)
    parser.add_argument("--trial", metavar="KEY", nargs="+", help="only these trials (default: all)")
    parser.add_argument("--threads", metavar="N", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument(
        "--batch-sizes", metavar="N", type=int, nargs="+", default=[1, 64], help="default: 1 64"
    )
    parser.add_argument(
        "--dtypes", choices=["float32", "bfloat16"], nargs="+", default=["float32"], help="default: float32"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, and print the rows; 1 where no network could be measured.

    Raises:
        ValueError: results that are not there or cannot be read, an unknown trial, a number below 1.
    """
    # Not above: torch and accelerate take seconds to load, and --help needs neither.
    from distsparse.launch.latency import Conditions, measure_again
    from distsparse.train.progress import Progress

    for option, numbers in (("--threads", args.threads), ("--batch-sizes", args.batch_sizes)):
        if min(numbers) < 1:
            raise ValueError(f"{option} {' '.join(map(str, numbers))}: allowed: at least 1")
    trials = tables.read(args.directory, study=args.study, table="trials")
    completed, _ = tables.split(trials)
    if args.trial:
        if unknown := sorted(set(args.trial) - set(completed["trial"])):
            raise ValueError(f"--trial {' '.join(unknown)}: no completed trial of {args.directory}")
        completed = completed[completed["trial"].isin(args.trial)]
    if completed.empty:
        raise ValueError(f"{args.directory}: no completed trial to measure")
    folder = Path(args.directory).resolve()
    root = folder.parent if (folder / "trials").is_dir() else folder
    conditions = Conditions(
        batch_sizes=tuple(args.batch_sizes), num_threads=tuple(args.threads), dtypes=tuple(args.dtypes)
    )
    progress = Progress(len(completed), unit="network", enabled=True)
    rows: list[dict[str, Any]] = []
    for config, measured, problem in measure_again(root, _configs(root, completed), conditions):
        rows += [{"trial": config.key, **row} for row in measured]
        if problem:
            progress.line(f"{config.key}  not measured: {problem}")
        progress.advance()
    progress.close()
    if rows:
        print(tables.render(pd.DataFrame(rows), SHOWN))
    return 0 if rows else 1


def _configs(root: Path, trials: pd.DataFrame) -> list[tuple[RunConfig, dict[str, Any]]]:
    """Return each trial's configuration and row."""
    from distsparse.config import parse

    found = []
    for study, trial in zip(trials["study"], trials["trial"], strict=True):
        (row,) = results.read_trial(root, study=study, trial=trial) or [{}]
        found.append((parse(json.loads(row["config"])), row))
    return found
