"""Data sets that the trials of a node share: loaded once, and read where they lie in Ray's object store."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from distsparse.config import RunConfig
from distsparse.data import Dataset, Split


@dataclass(frozen=True)
class _Buffer:
    """A tensor as bytes: what Ray keeps outside of its pickles, and maps into each process of a node."""

    data: NDArray[np.uint8]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Buffer:
        flat = tensor.cpu().contiguous().flatten()
        return cls(flat.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape))

    def tensor(self) -> Tensor:
        with warnings.catch_warnings():
            # The memory is read-only, which torch cannot express; no data set's tensors are ever written to.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(self.data).view(self.dtype).reshape(self.shape)


def data_key(config: RunConfig) -> str:
    """Return what tells a configuration's data set from others."""
    return json.dumps(config.to_dict()["data"], sort_keys=True)


def share(datasets: Iterable[tuple[str, Dataset]]) -> dict[str, ray.ObjectRef]:
    """Put data sets into the object store, by key; each node that reads one fetches it once."""
    return {key: ray.put(_packed(dataset)) for key, dataset in datasets}


def fetch(reference: ray.ObjectRef) -> Dataset:
    """Return a shared data set; its tensors are the store's own memory, read-only and without a copy."""
    values = ray.get(reference)
    return Dataset(**{name: _unpacked(value) for name, value in values.items()})


def _packed(dataset: Dataset) -> dict[str, Any]:
    def packed(value: Any) -> Any:
        if isinstance(value, Split):
            return _Buffer.of(value.inputs), _Buffer.of(value.labels)
        return value

    return {name: packed(value) for name, value in vars(dataset).items()}


def _unpacked(value: Any) -> Any:
    if isinstance(value, tuple) and value and isinstance(value[0], _Buffer):
        return Split(*(buffer.tensor() for buffer in value))
    return value
