from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits

from distsparse.data import Dataset, Split, build, datasets


def split(n: int = 4) -> Split:
    return Split(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), torch.arange(n))


def data(**changes) -> Dataset:
    fields = {
        "train": split(),
        "validation": split(2),
        "test": split(3),
        "num_classes": 4,
        "input_shape": (1, 2, 2),
    }
    return Dataset(name="x", **(fields | changes))


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), "2 inputs but 3 labels"),
        (torch.zeros(2, 3), torch.zeros(2), "labels are torch.float32 of shape (2,); allowed: int64 (N,)"),
        (torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int64), "allowed: int64 (N,)"),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "allowed: (N, C, H, W)"),
        (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, dtype=torch.int64), "inputs are torch.int32"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "a split has no samples"),
    ],
)
def test_split_refuses(inputs, labels, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Split(inputs, labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 3}, "train labels are in [0, 3]; allowed with num_classes = 3: 0 to 2"),
        (
            {"validation": Split(torch.zeros(1, 1, 2, 2), torch.tensor([-1]))},
            "validation labels are in [-1, -1]",
        ),
        ({"test": Split(torch.zeros(1, 1, 2, 3), torch.tensor([0]))}, "test samples have shape (1, 2, 3)"),
        ({"mean": (0.5,)}, "mean and std must be given together"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "mean and std have 2 and 2 values"),
        ({"mean": (0.5,), "std": (0.0,)}, "every value must be above 0"),
        ({"crop_padding": -1}, "crop_padding = -1"),
    ],
)
def test_dataset_refuses(changes, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        data(**changes)


def test_augmentation_needs_images() -> None:
    flat = Split(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))
    vectors = data(train=flat, validation=None, test=flat, input_shape=(5,))
    with pytest.raises(ValueError, match="need images"):
        replace(vectors, flip=True)


def test_splits_and_device() -> None:
    assert list(data().splits) == ["train", "validation", "test"]
    assert list(data(validation=None).splits) == ["train", "test"]
    moved = data().to("cpu")
    assert [len(part) for part in moved.splits.values()] == [4, 2, 3]


def test_digits_are_all_of_the_bundled_ones_once() -> None:
    dataset = build("digits", {"validation": 100})
    assert [len(part) for part in dataset.splits.values()] == [1337, 100, 360]
    inputs = torch.cat([part.inputs for part in dataset.splits.values()])
    labels = torch.cat([part.labels for part in dataset.splits.values()])
    original = load_digits()
    ours = sorted(
        (*row, label)
        for row, label in zip((inputs.flatten(1) * (16 / 255)).round().tolist(), labels.tolist(), strict=True)
    )
    theirs = sorted(
        (*row, label) for row, label in zip(original.data.tolist(), original.target.tolist(), strict=True)
    )
    assert ours == theirs
    assert (int(inputs.min()), int(inputs.max())) == (0, 255)


def test_digits_split_is_fixed_and_shuffled() -> None:
    first, second = build("digits", {}), build("digits", {"test_fraction": 0.2})
    assert [len(part) for part in first.splits.values()] == [1437, 360]
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert first.test.labels.tolist() != load_digits().target[-360:].tolist()
    assert first.test.labels.bincount().min() > 20
    assert len(build("digits", {"test_fraction": 0.5}).test) == 899


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"validation": 1437}, "data.validation = 1437: must be below the 1437 training samples"),
        ({"test_fraction": 0.9999}, "data.test_fraction = 0.9999: leaves none"),
        ({"test_fraction": 0}, "data.test_fraction = 0"),
    ],
)
def test_digits_refuses(params, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build("digits", params)


@pytest.mark.parametrize("name", datasets.names())
def test_every_keyword_is_described(name) -> None:
    assert all(field.description for field in datasets.get(name).schema.model_fields.values())


def test_a_custom_factory_must_return_a_dataset(tmp_path, monkeypatch) -> None:
    (tmp_path / "tests_data_custom.py").write_text(
        "from distsparse.data import digits\ndef good():\n    return digits()\ndef bad():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert build("tests_data_custom:good", {}).num_classes == 10
    with pytest.raises(
        ValueError, match=r"'tests_data_custom:bad' returned int; it must return a distsparse\.data"
    ):
        build("tests_data_custom:bad", {})
