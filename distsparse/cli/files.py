"""YAML files and ``--set`` options → plain values, with errors in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def read_yaml(file: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML 1.2 file (so that 1e-4 is a number and `no` is text).

    Raises:
        ValueError: missing, not YAML, a key twice, or not a mapping.
    """
    try:
        values = _parse(Path(file).read_text())
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: must hold a mapping, not {type(values).__name__}")
    return values


def output_folder(text: str) -> Path:
    """Return the folder that ``--output`` names: a path, or a ``file://`` URI of one.

    Raises:
        ValueError: a URI of something else. Trials are claimed by locks, which an object store has not, and
            what its client writes replaces what is there: two commands would train, and write, one trial.
    """
    if "://" not in text:
        return Path(text)
    parts = urlsplit(text)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    raise ValueError(
        f"--output {text}: must be a folder, or file:///folder: a file system's locks claim trials. "
        "Checkpoints can be there (checkpoint.storage); tables can be copied there, and are read from there"
    )


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Return ``["method.delta_T=200"]`` as ``{"method.delta_T": 200}``; values are YAML.

    Raises:
        ValueError: no equals sign, a path twice, or a value that is not YAML.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ValueError(f"--set {assignment}: must be path=value, for example method.delta_T=200")
        if path in values:
            raise ValueError(f"--set {path}: given twice")
        try:
            values[path] = _parse(text)
        except ValueError as error:
            raise ValueError(f"--set {assignment}: {error}") from None
    return values


def _parse(text: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"is not valid YAML: {problem}{where}") from None
