"""`distsparse train`: one run."""

from __future__ import annotations

import argparse
from typing import Any

from distsparse.cli.files import output_folder, parse_assignments, read_yaml

EPILOG = """\
examples:
  distsparse train                                          a small run on scikit-learn's digits
  distsparse train mnist.yaml --set method.delta_T=200      one setting changed
  distsparse train mnist.yaml --workers 2                   two Ray Train workers, data parallel
  distsparse train mnist.yaml --resume                      go on after an interruption
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``train``."""
    parser = commands.add_parser(
        "train",
        help="train one sparse network",
        description="Train one sparse network and write its rows to DIR/<study>/. `distsparse methods` lists "
        "the methods and their parameters.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", metavar="CONFIG.yaml", nargs="?", help="the run; without it, all defaults (RigL on digits)"
    )
    add_set(parser)
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="Ray Train workers (launch.workers); 0, the default, trains in this process without Ray",
    )
    add_output(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the run's last checkpoint")
    parser.set_defaults(run=run)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--set``."""
    parser.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        dest="assignments",
        help="override one value by its dotted name, e.g. method.sparsity=0.95; repeat for several",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--output`` and ``--address``."""
    parser.add_argument("--output", metavar="DIR", default="runs", help="results' folder (default: runs)")
    parser.add_argument(
        "--address", help="a running Ray cluster, e.g. auto or 10.0.0.1:6379 (default: Ray on this machine)"
    )


def run(args: argparse.Namespace) -> int:
    """Train and print the outcome; 1 if the run failed.

    Raises:
        ValueError: a configuration that cannot run.
    """
    from distsparse.config import override
    from distsparse.launch import run as launch

    values = parse_assignments(args.assignments)
    if args.workers is not None:
        values["launch.workers"] = args.workers
    config = override(read_yaml(args.config) if args.config else {}, values)
    if args.address and config.launch.workers == 0:
        raise ValueError("--address: without --workers the run does not use Ray; say how many workers")
    root = output_folder(args.output)
    row = launch(config, root, resume=args.resume, verbose=True, address=args.address)
    if row["status"] == "failed":
        print(f"failed: {row['error']}")
        return 1
    print(_outcome(row))
    print(f"network: {row['checkpoint']}")
    print(f"tables:  {root / config.study}")
    return 0


def _outcome(row: dict[str, Any]) -> str:
    parts = [
        f"accuracy {row['accuracy']:.4f}",
        f"sparsity {row['sparsity']:.4f} ({row['nnz']:,} active weights)",
        f"{row['num_updates']} mask updates",
        f"{row['wall_s']:.1f} s",
    ]
    if row.get("training_flops") is not None:
        parts.insert(2, f"training FLOPs {row['training_flops']:.3f} × dense")
    lines = ["  ".join(parts)]
    if row.get("latency_ms") is not None:
        times = [f"dense {row['latency_dense_b1_ms']:.3f} ms"]
        if row.get("latency_csr_b1_ms") is not None:
            times.append(f"CSR {row['latency_csr_b1_ms']:.3f} ms")
        lines.append(
            f"latency {row['latency_ms']:.3f} ms ({row['latency_format']}, one sample: {', '.join(times)})"
        )
    return "\n".join(lines)
