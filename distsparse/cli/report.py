"""`distsparse report`: a study as one HTML file."""

from __future__ import annotations

import argparse

from distsparse.cli import tables
from distsparse.results import write_report

EPILOG = """\
examples:
  distsparse report results --output report.html
  distsparse report results --study rigl --maximize validation_accuracy --minimize inference_flops
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``report``."""
    parser = commands.add_parser(
        "report",
        help="write one interactive HTML file: fronts, curves, layers, tests, all trials",
        description="Write a report that opens in any browser without a network: what to ship, trade-offs, "
        "accuracy over sparsity, tests, importances, learning curves, layers, topology changes, all trials.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tables.add_source(parser)
    parser.add_argument(
        "--output", metavar="FILE", default="report.html", help="the file to write (default: report.html)"
    )
    tables.add_objectives(parser)
    parser.add_argument(
        "--color",
        metavar="COL",
        default="method.name",
        help="whose values have a colour each (default: method.name)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the report.

    Raises:
        ValueError: results that are not there or cannot be read, no completed trial, or bad objectives.
    """
    source = tables.source(args.directory, study=args.study)
    written = write_report(
        source, args.output, maximize=args.maximize, minimize=args.minimize, color=args.color
    )
    print(f"wrote {written}")
