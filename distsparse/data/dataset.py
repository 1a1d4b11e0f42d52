"""What a data set is: tensors of inputs and labels for each split, and how a batch of them is prepared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their labels.

    Attributes:
        inputs: uint8 images (N, C, H, W), or any floating-point tensor (N, ...).
        labels: int64 (N,).

    Raises:
        ValueError: other dtypes or shapes, or lengths that differ.
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        inputs, labels = self.inputs, self.labels
        if inputs.dtype == torch.uint8:
            if inputs.dim() != 4:
                raise ValueError(f"uint8 inputs have shape {tuple(inputs.shape)}; allowed: (N, C, H, W)")
        elif not inputs.is_floating_point() or inputs.dim() < 2:
            raise ValueError(
                f"inputs are {inputs.dtype} of shape {tuple(inputs.shape)}; "
                f"allowed: uint8 (N, C, H, W), or floating point (N, ...)"
            )
        if labels.dtype != torch.int64 or labels.dim() != 1:
            raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; allowed: int64 (N,)")
        if len(inputs) != len(labels):
            raise ValueError(f"{len(inputs)} inputs but {len(labels)} labels")
        if len(labels) == 0:
            raise ValueError("a split has no samples")

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """Return the split on a device."""
        return Split(self.inputs.to(device), self.labels.to(device))

    def take(self, index: Tensor) -> Split:
        """Return the samples at the int64 positions of ``index``, in its order."""
        return Split(self.inputs[index], self.labels[index])


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Splits, and the preparation that :func:`distsparse.data.batches.batch` gives their samples.

    Attributes:
        name: for results and messages.
        train, validation, test: the samples; a run may have no validation split.
        num_classes: labels are in [0, num_classes).
        input_shape: shape of one sample.
        mean, std: one value per channel, subtracted and divided by, on the scale where a pixel is in [0, 1].
        crop_padding: pixels of zeros around a training image before a random crop; 0 = no crop.
        flip: whether a training image is mirrored with probability 1/2.

    Raises:
        ValueError: splits that do not fit each other or the settings.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    num_classes: int
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        for split_name, split in self.splits.items():
            self._check_split(split_name, split)
        self._check_normalization()
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding = {self.crop_padding}: must be 0 or more")
        if (self.crop_padding or self.flip) and len(self.input_shape) != 3:
            raise ValueError(
                f"crop_padding and flip need images (C, H, W); {self.name} has {self.input_shape}"
            )

    @property
    def splits(self) -> dict[str, Split]:
        """Every split that exists, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set with all splits on a device."""
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), validation=validation, test=self.test.to(device))

    def _check_split(self, split_name: str, split: Split) -> None:
        if tuple(split.inputs.shape[1:]) != self.input_shape:
            raise ValueError(
                f"{self.name}: {split_name} samples have shape {tuple(split.inputs.shape[1:])}, "
                f"not input_shape = {self.input_shape}"
            )
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"{self.name}: {split_name} labels are in [{low}, {high}]; "
                f"allowed with num_classes = {self.num_classes}: 0 to {self.num_classes - 1}"
            )

    def _check_normalization(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"{self.name}: mean and std must be given together")
        if self.mean is None or self.std is None:
            return
        if not len(self.mean) == len(self.std) == self.input_shape[0]:
            raise ValueError(
                f"{self.name}: mean and std have {len(self.mean)} and {len(self.std)} values; "
                f"input_shape = {self.input_shape} needs {self.input_shape[0]}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"{self.name}: std = {self.std}: every value must be above 0")
