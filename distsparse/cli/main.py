"""The command line: exit code 0 for success, 1 for a run that failed, 2 for bad input, 128 + a signal."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType

from distsparse.cli import (
    best,
    compact,
    compare,
    importance,
    latency,
    methods,
    pareto,
    report,
    results,
    summary,
    sweep,
    train,
)
from distsparse.version import __version__

EPILOG = """\
Start with:  distsparse train
             distsparse sweep tune_spaces/demo.yaml
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    top = argparse.ArgumentParser(
        prog="distsparse",
        description="Train neural networks that are sparse from the first step, "
        "on one machine or a Ray cluster.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"distsparse {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in (
        train,
        sweep,
        results,
        summary,
        pareto,
        best,
        compare,
        importance,
        report,
        latency,
        compact,
        methods,
    ):
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    args = parser().parse_args(arguments)
    # A console script has its own folder in front, where `python -m` has the working directory;
    # package.module:function in a configuration means the user's.
    if os.getcwd() not in sys.path:  # noqa: PTH109  sys.path holds text
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    warnings.filterwarnings("ignore", category=FutureWarning)
    received = int(signal.SIGINT)

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        raise KeyboardInterrupt(number)  # which Ray replaces by one of its own

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        return args.run(args) or 0
    except BrokenPipeError:  # `| head` has seen enough; nothing more may be written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:  # OSError: a folder that cannot be written, no cluster there
        print(f"distsparse: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else received
        print(
            f"distsparse: {'terminated' if number == signal.SIGTERM else 'interrupted'}; "
            "to go on: `train` with --resume, or the same `sweep` again",
            file=sys.stderr,
        )
        return 128 + int(number)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
