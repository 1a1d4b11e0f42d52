"""`distsparse best`: the best trials within limits."""

from __future__ import annotations

import argparse

from distsparse.cli import tables
from distsparse.results import best_under, summarize

EPILOG = """\
examples:
  distsparse best results --at-most latency_ms=2
  distsparse best results --minimize latency_ms --at-least accuracy=0.97 --means
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``best``."""
    parser = commands.add_parser(
        "best",
        help="print the best trials within limits, such as a latency of at most 2 ms",
        description="Print the completed trials within all limits, the best first.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tables.add_source(parser)
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--maximize", metavar="COL", help="what is best (default: accuracy)")
    goal.add_argument("--minimize", metavar="COL", help="what is best, less being better")
    parser.add_argument(
        "--at-most", metavar="COL=X", action="append", default=[], help="a limit; may be repeated"
    )
    parser.add_argument(
        "--at-least", metavar="COL=X", action="append", default=[], help="a limit; may be repeated"
    )
    parser.add_argument(
        "--means", action="store_true", help="choose among configurations, by means over seeds"
    )
    parser.add_argument("--count", metavar="N", type=int, default=10, help="rows to print (default: 10)")
    tables.add_csv(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the best rows, and write all within the limits as CSV if asked to.

    Raises:
        ValueError: results that are not there or cannot be read, or a column that is unknown or not numeric.
    """
    trials = tables.read(args.directory, study=args.study)
    at_most = tables.limits(args.at_most, "--at-most")
    at_least = tables.limits(args.at_least, "--at-least")
    objective = args.minimize or args.maximize or "accuracy"
    named = list(dict.fromkeys([objective, *at_most, *at_least]))
    suffix = "_mean" if args.means else ""
    table = summarize(trials, named) if args.means else trials
    rows = best_under(
        table,
        {f"{name}{suffix}": limit for name, limit in at_most.items()},
        at_least={f"{name}{suffix}": limit for name, limit in at_least.items()},
        **{"minimize" if args.minimize else "maximize": f"{objective}{suffix}"},
    )
    if args.means:
        columns = [name for name in table.columns if name != "trials"]
    else:
        columns = list(dict.fromkeys(["trial", *tables.varying(trials), *named]))
    print(tables.render(rows.head(args.count), columns))
    kind = "configurations" if args.means else "completed trials"
    total = len(table) if args.means else len(tables.split(trials)[0])
    print(f"\n{len(rows)} of {total} {kind} are within the limits")
    if args.csv:
        tables.write_csv(rows, args.csv)
        print(f"wrote {args.csv}")
