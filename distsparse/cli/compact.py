"""`distsparse compact`: many small files into few."""

from __future__ import annotations

import argparse

from distsparse.cli import tables
from distsparse.results import compact

EPILOG = """\
example:
  distsparse compact results
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``compact``."""
    parser = commands.add_parser(
        "compact",
        help="merge the small files of large studies, so that they are read faster",
        description="Merge the files of each table of a results folder. A sweep may write to it meanwhile; "
        "whenever this is killed, the tables are complete. pandas reads the folders as before.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIR", help="results folder, or the folder of one study")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Merge, and print how many files there were and are.

    Raises:
        ValueError: results that are not there or cannot be read or merged.
    """
    done = compact(args.directory)
    print(tables.render(done, list(done.columns)))
