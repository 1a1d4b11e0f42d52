"""`distsparse importance`: which setting matters."""

from __future__ import annotations

import argparse

from distsparse.cli import tables
from distsparse.results import importance

EPILOG = """\
example:
  distsparse importance results --value accuracy
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``importance``."""
    parser = commands.add_parser(
        "importance",
        help="print which settings matter for a value",
        description="Print how much of a value's variance a random forest no longer explains once a setting "
        "is shuffled, on trials that it was not fitted to. Needs 20 completed trials or more.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tables.add_source(parser)
    parser.add_argument(
        "--value", metavar="COL", default="accuracy", help="what to explain (default: accuracy)"
    )
    tables.add_csv(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the importances, and write them as CSV if asked to.

    Raises:
        ValueError: results that are not there or cannot be read, too few of them, or a column that is
        unknown.
    """
    table = importance(tables.read(args.directory, study=args.study), args.value)
    print(tables.render(table, ["setting", "importance", "sd"]))
    explained = max(table["explained"].iloc[0], 0)
    note = "" if explained > 0.3 else ": too little to go by"
    print(f"\nthe settings explain {explained:.0%} of the variance of {args.value} on unseen trials{note}")
    if args.csv:
        tables.write_csv(table, args.csv)
        print(f"wrote {args.csv}")
