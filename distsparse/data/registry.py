"""The registry of data sets, and building one from its name and keywords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distsparse.data.dataset import Dataset
from distsparse.registry import Registry

datasets: Registry[Dataset] = Registry("data")


def build(name: str, params: Mapping[str, Any]) -> Dataset:
    """Return the data set of a name, in CPU memory.

    Splits may be shared between calls in one process: never write into their tensors.

    Raises:
        ValueError: unknown data set or keyword, a value out of range, files that are missing or cannot be
            read, or a custom factory whose result is no ``Dataset``.
    """
    entry = datasets.get(name)
    dataset: object = entry.factory(**entry.parse(params, "data"))
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"data {name!r} returned {type(dataset).__name__}; it must return a distsparse.data.Dataset"
        )
    return dataset
