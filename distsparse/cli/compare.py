"""`distsparse compare`: is one method better than another?"""

from __future__ import annotations

import argparse

from distsparse.cli import tables
from distsparse.results import compare
from distsparse.results.compare import TESTS

EPILOG = """\
examples:
  distsparse compare results --baseline rigl
  distsparse compare results --within method.sparsity
  distsparse compare results --between method.delta_T --value validation_accuracy --test wilcoxon
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``compare``."""
    parser = commands.add_parser(
        "compare",
        help="test whether methods differ, over pairs of trials that agree in all else",
        description="Print a row for each two methods: the mean difference over pairs of trials with the "
        "same seed and settings, its interval, the p-value of a paired test, and that p-value corrected for "
        "the number of rows (Holm).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tables.add_source(parser)
    parser.add_argument(
        "--value", metavar="COL", default="accuracy", help="what to compare (default: accuracy)"
    )
    parser.add_argument(
        "--between",
        metavar="COL",
        default="method.name",
        help="whose values to compare (default: method.name)",
    )
    parser.add_argument(
        "--baseline", metavar="X", help="compare with this value only (default: all with all)"
    )
    parser.add_argument("--within", metavar="A,B", help="compare apart for each value of these columns")
    parser.add_argument(
        "--test",
        choices=TESTS,
        default="t",
        help="Student's paired test or Wilcoxon's signed ranks (default: t)",
    )
    tables.add_csv(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the comparison, and write it as CSV if asked to.

    Raises:
        ValueError: results that are not there or cannot be read, an unknown column, or nothing to compare.
    """
    trials = tables.read(args.directory, study=args.study)
    baseline = args.baseline
    if baseline is not None and args.between in trials:
        # A number's text names the number.
        named = {str(value): value for value in trials[args.between].dropna().unique().tolist()}
        baseline = named.get(baseline, baseline)
    table = compare(
        trials,
        args.value,
        between=args.between,
        baseline=baseline,
        within=tables.columns(args.within) or (),
        test=args.test,
    )
    print(tables.render(table, list(table.columns)))
    significant = int((table["p_holm"] < 0.05).sum())
    print(f"\n{significant} of {len(table)} differences in {args.value} are significant at 5 % (Holm)")
    if args.csv:
        tables.write_csv(table, args.csv)
        print(f"wrote {args.csv}")
