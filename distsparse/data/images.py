"""A folder of labelled images in the Parquet layout of public data hubs, such as MNIST or CIFAR-10."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from distsparse.data.dataset import Dataset, Split
from distsparse.data.decode import decode_images, image_shape
from distsparse.data.parquet import find_split, label_names, read_columns
from distsparse.data.registry import datasets
from distsparse.data.settings import CropPadding, Flip, Limit, Normalize, Validation
from distsparse.data.splits import channel_statistics, fixed_subset, hold_out

BASE_VARIABLE = "DISTSPARSE_DATA"

FolderPath = Annotated[
    str | None,
    Field(
        description=f"folder with train.parquet and test.parquet; a relative one is also looked for below "
        f"the {BASE_VARIABLE} environment variable, which is the folder itself when this is none"
    ),
]


@datasets.register("images")
def images(
    *,
    path: FolderPath = None,
    validation: Validation = 0,
    normalize: Normalize = False,
    crop_padding: CropPadding = 0,
    flip: Flip = False,
    limit: Limit = None,
) -> Dataset:
    """Load a folder of images in Parquet: columns ``image`` (encoded bytes) and ``label``.

    All images must have one size. ``limit`` is applied to each split first, then ``validation`` samples are
    held out of the training split, then mean and std are taken from what is left of it. Decoded images stay
    in memory for further calls in the same process while the files do not change.

    Raises:
        ValueError: files that are missing, cannot be read or do not fit, naming the file and row.
    """
    folder = resolve(path)
    train_files, test_files = find_split(folder, "train"), find_split(folder, "test")
    train_samples, train_classes = _load("train", _stamped(train_files), limit)
    input_shape = image_shape(train_samples.inputs)
    test_samples, test_classes = _load("test", _stamped(test_files), limit, input_shape)
    names = label_names(train_files[0])
    train, held_out = hold_out(train_samples, validation)
    mean, std = channel_statistics(train.inputs) if normalize else (None, None)
    return Dataset(
        name=folder.resolve().name,
        train=train,
        validation=held_out,
        test=test_samples,
        num_classes=len(names) if names else max(train_classes, test_classes),
        input_shape=input_shape,
        mean=mean,
        std=std,
        crop_padding=crop_padding,
        flip=flip,
    )


def resolve(path: str | None) -> Path:
    """Return the data folder of a ``path`` setting.

    Raises:
        ValueError: neither a path nor the environment variable is given, or a relative path leads nowhere.
    """
    base = os.environ.get(BASE_VARIABLE)
    if path is None:
        if not base:
            raise ValueError(f"data.path is required unless the environment variable {BASE_VARIABLE} is set")
        return Path(base)
    folder = Path(path).expanduser()
    if base and not folder.is_absolute() and not folder.exists():
        return Path(base) / folder
    if not folder.is_absolute() and not folder.exists():
        raise ValueError(
            f"data.path: no folder {path!r} in {Path.cwd()}; {BASE_VARIABLE}, the other place, is not set"
        )
    return folder


def _stamped(files: tuple[Path, ...]) -> tuple[tuple[Path, int], ...]:
    """Return each file with its modification time, so that a changed file is decoded again."""
    return tuple((file.absolute(), file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=4)  # two data sets with their train and test splits
def _load(
    split: str,
    files: tuple[tuple[Path, int], ...],
    limit: int | None,
    shape: tuple[int, int, int] | None = None,
) -> tuple[Split, int]:
    """Return a split's samples in the files' order, and its highest label plus one over *all* of its rows.

    ``shape`` is what every image must have; the first image decides if it is None.
    """
    columns = [read_columns(file) for file, _ in files]
    labels = torch.tensor([label for _, file_labels in columns for label in file_labels], dtype=torch.int64)
    if len(labels) == 0:
        raise ValueError(f"{files[0][0]}: the {split} split has no rows")
    kept = fixed_subset(split, len(labels), limit)
    parts: list[Tensor] = []
    start = 0
    for (file, _), (encoded, file_labels) in zip(files, columns, strict=True):
        rows = kept[(kept >= start) & (kept < start + len(file_labels))] - start
        start += len(file_labels)
        if len(rows):
            parts.append(decode_images(file, encoded, rows.tolist(), shape=shape))
            shape = image_shape(parts[0])
    return Split(torch.cat(parts), labels[kept]), int(labels.max()) + 1
