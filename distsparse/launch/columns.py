"""The configuration's columns in the ``trials`` table: every registered parameter, whatever a trial used."""

from __future__ import annotations

import json
import types
import typing
from typing import Any

import pyarrow as pa

from distsparse.config import columns


def config_columns() -> dict[str, pa.DataType]:
    """Return the column type of every dotted name of a configuration; the same for every trial.

    All tables of a study so have the same columns, whatever method or model a trial used, and pandas reads
    the folder alone.
    """
    return {name: _arrow_type(hint) for name, hint in columns().items() if name not in ("study", "seed")}


def _arrow_type(hint: Any) -> pa.DataType:
    """Return the column type of an annotation; what is neither number nor bool is text (lists as JSON)."""
    if typing.get_origin(hint) is typing.Annotated:
        return _arrow_type(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [_arrow_type(arg) for arg in typing.get_args(hint) if arg is not type(None)]
        if all(option in (pa.int64(), pa.float64()) for option in options):
            return pa.float64() if pa.float64() in options else pa.int64()
        return options[0] if len(set(options)) == 1 else pa.string()
    simple: dict[Any, pa.DataType] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    return simple.get(hint, pa.string())


def fitted(value: Any, kind: pa.DataType) -> Any:
    """Return a value in its column's type, or None where it has another: ``config`` holds it in any case.

    Two components may give one keyword two types (``mlp.hidden`` is a list, another model's a number).
    """
    if value is None:
        return None
    if kind == pa.string():
        return value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, bool) or kind == pa.bool_():
        return value if isinstance(value, bool) and kind == pa.bool_() else None
    if isinstance(value, int) or (isinstance(value, float) and kind == pa.float64()):
        return value
    return None
