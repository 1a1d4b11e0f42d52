"""Checkpoints without pickle: tensors in safetensors, everything else in JSON, folders that appear whole."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from distsparse.core.ticket import MASK, NETWORK
from distsparse.dist import layout

STATE = "state.safetensors"
REST = "state.json"


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``target`` if the block ends well, and vanishes if it does not.

    Files are flushed to disk before the rename, so a crash leaves the whole folder or none.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in [*temporary.iterdir(), temporary]:
            _flush(file)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        _flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(
    folder: Path, *, network: Mapping[str, Tensor], masks: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Write a checkpoint into an existing folder.

    Args:
        folder: receives ``network.safetensors`` (weights, buffers and ``mask.<layer>``, all that an
            evaluation needs), ``state.safetensors`` and ``state.json``.
        network: the model's state dict.
        masks: bool (rows, cols) for each sparsified weight.
        state: nested dictionaries, lists, tuples, tensors, numbers and text.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    named = dict(network) | {MASK + name: mask for name, mask in masks.items()}
    tensors: dict[str, Tensor] = {}
    rest = _split(state, "", tensors)
    try:
        save_file({name: _plain(tensor) for name, tensor in named.items()}, folder / NETWORK)
        save_file({name: _plain(tensor) for name, tensor in tensors.items()}, folder / STATE)
        (folder / REST).write_text(json.dumps(rest))
    except (OSError, SafetensorError) as error:
        raise OSError(f"checkpoint in {folder.parent} cannot be written: {error}") from error


def gathered(value: Any, *, keep: bool) -> Any:
    """Return state with its sharded tensors whole and on the CPU, one at a time; all ranks must call it.

    Without ``keep`` these are None, so that one rank alone has the memory of all.
    """
    if layout.is_sharded(value):
        tensor = layout.whole(value.detach())
        return tensor.cpu() if keep else None
    if isinstance(value, Mapping):
        return {key: gathered(item, keep=keep) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(gathered(item, keep=keep) for item in value)
    return value


def load_state(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's state as it was given to :func:`save`.

    Raises:
        ValueError: a file is missing or damaged.
    """
    state = _join(load_rest(folder), _load_tensors(folder / STATE))
    assert isinstance(state, dict)
    return state


def problem(folder: Path) -> str | None:
    """Say why a checkpoint cannot be read, or None if each file is there, as long as it was written.

    Tensors are not read: a safetensors file's header gives its length.
    """
    for file in (folder / NETWORK, folder / STATE):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"checkpoint {file} cannot be read: {error}"
    try:
        load_rest(folder)
    except ValueError as error:
        return str(error)
    return None


def load_rest(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's plain values alone, without its tensors.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        rest: dict[str, Any] = json.loads((folder / REST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {folder / REST} cannot be read: {error}") from None
    return rest


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint {file} cannot be read: {error}") from None


def _plain(tensor: Tensor) -> Tensor:
    """Copy to the CPU: safetensors refuses tensors that share memory, as tied weights do."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format).contiguous()


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` as JSON, with its tensors moved into ``tensors`` under their paths."""
    if isinstance(value, Tensor):
        # Numbered, since joined paths are not unique: {"a/b": …} and {"a": {"b": …}}.
        name = f"{len(tensors)}{path}"
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        # JSON would turn an optimizer's integer keys into text.
        return {"$items": [[key, _split(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"$tuple": [_split(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_split(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        if "$tuple" in value:
            return tuple(_join(item, tensors) for item in value["$tuple"])
        return {key: _join(item, tensors) for key, item in value["$items"]}
    return value


def plain_values(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's state with its tensors left out (each as None): history and summary, read fast.

    Raises:
        ValueError: the file is missing or damaged.
    """

    class _Absent(dict[str, Tensor]):
        def __missing__(self, key: str) -> None:
            return None

    state = _join(load_rest(folder), _Absent())
    assert isinstance(state, dict)
    return state
