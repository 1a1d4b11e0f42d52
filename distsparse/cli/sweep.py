"""`distsparse sweep`: many runs over a space."""

from __future__ import annotations

import argparse
from pathlib import Path

from distsparse.cli.files import output_folder, parse_assignments, read_yaml
from distsparse.cli.train import add_output, add_set
from distsparse.results import compact

# Fewer files than these are read in a second or two, and each stays its trial's.
MERGE_FROM = 500
EPILOG = """\
examples:
  distsparse sweep tune_spaces/demo.yaml --output runs
  distsparse sweep tune_spaces/rigl.yaml --trials 20 --set train.epochs=5 --output runs
  distsparse sweep tune_spaces/rigl.yaml --address auto --output /shared/runs

The same command again keeps trials that completed, continues those that were cut off, and runs the others:
after Ctrl-C, a crash or a budget there is nothing else to do. docs/sweeps.md describes the space file.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``sweep``."""
    parser = commands.add_parser(
        "sweep",
        help="train over a space of configurations, side by side on Ray Tune",
        description="Train every trial of a space and write the tables to DIR/<study>/. A trial that fails "
        "is a row with its error; the sweep goes on.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("space", metavar="SPACE.yaml", help="base configuration and domains by dotted name")
    add_set(parser)
    parser.add_argument("--trials", metavar="N", type=int, help="points to draw, instead of num_samples")
    parser.add_argument("--max-trials", metavar="N", type=int, help="begin at most N trials, then end")
    parser.add_argument(
        "--time-budget-s",
        metavar="S",
        type=float,
        help="end after S seconds; running trials save their last step",
    )
    parser.add_argument("--cpus", metavar="N", type=int, help="CPUs to use on this machine (default: all)")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the sweep and say where its tables are; 1 if no trial completed.

    Raises:
        ValueError: a space or a configuration that cannot run, or Ray is not installed.
    """
    try:
        from distsparse.sweep import parse_space, sweep
    except ImportError as error:
        raise ValueError(f"sweep needs Ray (pip install 'distsparse[ray]'): {error}") from None
    if args.cpus is not None and args.cpus < 1:
        raise ValueError(f"--cpus {args.cpus}: must be at least 1")
    space = parse_space(read_yaml(args.space), parse_assignments(args.assignments))
    if args.trials is not None:
        space = space.with_samples(args.trials)
    space = space.with_budget(time_budget_s=args.time_budget_s, max_trials=args.max_trials)
    root = output_folder(args.output)
    trials = sweep(space, root, address=args.address, num_cpus=args.cpus)
    completed = int((trials["status"] == "completed").sum())
    folder = root / space.base.study
    if trials.empty:
        print(f"no trial ended within the budget; the same command goes on in {folder}")
        return 1
    _merge(folder)
    print(f"{completed} of {len(trials)} trials completed; tables: {folder}")
    print(f"next: distsparse pareto {folder} --maximize accuracy --maximize sparsity --minimize latency_ms")
    return 0 if completed else 1


def _merge(folder: Path) -> None:
    """Merge a large study's files; where that cannot be, they stay as they are."""
    try:
        compact(folder, minimum=MERGE_FROM)
    except (ValueError, OSError) as error:
        print(f"files not merged: {error}")
