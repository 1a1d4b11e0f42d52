"""`distsparse methods`: every method with its parameters."""

from __future__ import annotations

import argparse
import inspect
import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic.fields import FieldInfo

from distsparse.registry import Entry

if TYPE_CHECKING:  # torch takes a second to import, and every command would wait for it
    from distsparse.core import Move

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
        lines.append(f"  {name} = {_default(info)}  ({_allowed(info)})")
        lines.append(f"      {info.description}")
    return "\n".join(lines)


def to_markdown() -> str:
    """Return the reference of all registered methods, ``docs/methods.md``, as Markdown."""
    from distsparse.methods import methods

    return "\n\n".join([_PREFACE, *(_section(entry) for entry in methods)]) + "\n"


_PREFACE = """\
# Methods

Written by `distsparse.cli.methods.to_markdown()` from the methods themselves; `distsparse methods` prints the
same parameters. A method is a composition of moves: its *first topology* is chosen before the first step, its
*update* runs every `delta_T` steps until `T_end`. The moves are those of the default parameters.

Top-KAST (arXiv:2106.03517) is not among them: it trains more weights than its forward pass uses, so that
weights outside of the forward mask are not zero. That takes two masks; here an inactive weight is zero."""


def _section(entry: Entry[Any]) -> str:
    rows = [
        f"| `{name}` | `{_default(info)}` | {_cell(_allowed(info))} | {_cell(info.description or '')} |"
        for name, info in entry.schema.model_fields.items()
    ]
    table = ["| parameter | default | allowed | meaning |", "|---|---|---|---|", *rows]
    parts = [
        f"## {entry.name}",
        inspect.getdoc(entry.factory) or "",
        f"*{entry.source}*",
        _composition(entry),
        "\n".join(table) if rows else "No parameters.",
    ]
    return "\n\n".join(parts)


def _composition(entry: Entry[Any]) -> str:
    required = [name for name, info in entry.schema.model_fields.items() if info.is_required()]
    if required:
        return f"- First topology: that of `{required[0]}`\n- Update: none"
    method = entry.factory()
    when = "Update between two rounds of training" if method.rounds > 1 else "Update"
    return (
        f"- First topology: {_moves(method.init, 'all weights active')}\n"
        f"- {when}: {_moves(method.update, 'none')}"
    )


def _default(info: FieldInfo) -> str:
    return "required" if info.is_required() else repr(info.default)


def _moves(moves: Sequence[Move], otherwise: str) -> str:
    return " → ".join(f"`{move.name}`" for move in moves) or otherwise


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _allowed(info: FieldInfo) -> str:
    """Return type and range: 'float > 0, ≤ 1', or the allowed names."""
    return _bounded(info.annotation, info.metadata)


def _bounded(hint: Any, constraints: Sequence[Any]) -> str:
    bounds = [
        f"{symbol} {getattr(constraint, attribute):g}"
        for constraint in constraints
        for attribute, symbol in _BOUNDS.items()
        if getattr(constraint, attribute, None) is not None
    ]
    return f"{_type_name(hint)} {', '.join(bounds)}".strip()


def _type_name(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        inner = [item for each in args[1:] for item in getattr(each, "metadata", [each])]
        return _bounded(args[0], inner)
    if origin is typing.Literal:
        return " | ".join(str(value) for value in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(arg) for arg in args)
    if origin is tuple:
        return f"({', '.join(_type_name(arg) for arg in args)})"
    return getattr(hint, "__name__", str(hint))
