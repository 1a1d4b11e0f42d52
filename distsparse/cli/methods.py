"""`distsparse methods`: every method with its parameters."""

from __future__ import annotations

import argparse
import types
import typing
from typing import Any

from pydantic.fields import FieldInfo

from distsparse.registry import Entry

_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``methods``."""
    parser = commands.add_parser(
        "methods",
        help="list every method with its parameters, ranges, defaults and paper",
        description="List every method with its parameters, their ranges and defaults, and its paper.",
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these methods")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the methods.

    Raises:
        ValueError: an unknown name.
    """
    from distsparse.methods import methods

    entries = [methods.get(name) for name in args.names] or list(methods)
    print("\n\n".join(describe(entry) for entry in entries))


def describe(entry: Entry[Any]) -> str:
    """Return a method's summary, paper and parameters as text."""
    lines = [f"{entry.name}: {entry.summary}", f"  {entry.source}"]
    for name, info in entry.schema.model_fields.items():
        lines.append(f"  {name} = {info.default!r}  ({_allowed(info)})")
        lines.append(f"      {info.description}")
    return "\n".join(lines)


def _allowed(info: FieldInfo) -> str:
    """Return type and range: 'float > 0, ≤ 1', or the allowed names."""
    bounds = [
        f"{symbol} {getattr(constraint, attribute):g}"
        for constraint in info.metadata
        for attribute, symbol in _BOUNDS.items()
        if hasattr(constraint, attribute)
    ]
    return f"{_type_name(info.annotation)} {', '.join(bounds)}".strip()


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(value) for value in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(_type_name(arg) for arg in typing.get_args(hint))
    return getattr(hint, "__name__", str(hint))
