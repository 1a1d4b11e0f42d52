"""Data sets in Ray's object store: equal, and not copied."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from parts import blobs, pictures

from distsparse.data import Dataset
from distsparse.sweep.shared import fetch, share

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    from distsparse.launch.session import connected

    with connected(num_cpus=1):
        yield


@pytest.mark.parametrize("dataset", [blobs(validation=9), pictures(flip=True, crop_padding=1)])
def test_equal_in_everything(dataset: Dataset) -> None:
    found = fetch(share([("a", dataset)])["a"])
    assert found.splits.keys() == dataset.splits.keys()
    for name, split in dataset.splits.items():
        assert torch.equal(found.splits[name].inputs, split.inputs)
        assert torch.equal(found.splits[name].labels, split.labels)
        assert found.splits[name].inputs.dtype == split.inputs.dtype
    assert (found.flip, found.crop_padding, found.input_shape) == (
        dataset.flip,
        dataset.crop_padding,
        dataset.input_shape,
    )


def test_one_copy_in_memory() -> None:
    reference = share([("a", pictures(samples=4096, size=32))])["a"]
    first, second = fetch(reference), fetch(reference)
    assert first.train.inputs.data_ptr() == second.train.inputs.data_ptr()
