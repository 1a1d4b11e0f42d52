"""Batches prepared on the device that holds the data, with randomness that is a function of the sample.

Nothing here has a generator's state: an epoch's order depends on (seed, epoch), a sample's augmentation on
(key, sample index). A run on four workers, or one that was resumed, sees the same pixels as any other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distsparse.data.dataset import Dataset, Split
from distsparse.ops import counter_rng


def epoch_order(*, seed: int, epoch: int, num_samples: int) -> Tensor:
    """Return a permutation of the samples, int64 on the CPU, that differs per seed and epoch."""
    return counter_rng.permutation(counter_rng.key("epoch order", seed, epoch), num_samples)


def augmentation_key(*, seed: int, epoch: int) -> int:
    """Return the key of an epoch's augmentations, for :func:`batch`."""
    return counter_rng.key("augmentation", seed, epoch)


def batch(split: Split, index: Tensor, *, dataset: Dataset, key: int | None) -> tuple[Tensor, Tensor]:
    """Return floating-point inputs (B, ...) and labels (B,) at positions ``index``, on the split's device.

    uint8 pixels become float32 in [0, 1]; floating-point inputs keep their dtype. With a ``key`` the samples
    are augmented as ``dataset`` says, before its mean and std are applied, so a crop's padding is black.

    Args:
        split: the samples, usually one of the data set's own.
        index: int64 positions (B,) in the split, on any device.
        dataset: its ``crop_padding``, ``flip``, ``mean`` and ``std`` are used.
        key: see :func:`augmentation_key`; None for evaluation.
    """
    index = index.to(split.inputs.device)
    inputs = split.inputs[index]
    if key is not None and (dataset.crop_padding or dataset.flip):
        inputs = augment(inputs, index, key=key, crop_padding=dataset.crop_padding, flip=dataset.flip)
    if inputs.dtype == torch.uint8:
        inputs = inputs.to(torch.float32) / 255
    if dataset.mean is not None and dataset.std is not None:
        inputs = (inputs - _per_channel(dataset.mean, inputs)) / _per_channel(dataset.std, inputs)
    return inputs, split.labels[index]


def augment(images: Tensor, index: Tensor, *, key: int, crop_padding: int, flip: bool) -> Tensor:
    """Return images (B, C, H, W) cropped at random from their zero-padded selves and mirrored half the time.

    The crop of sample b begins ``floor(u · (2 · crop_padding + 1))`` pixels into the padded image in each
    direction, where every ``u`` in [0, 1) is a function of ``key`` and ``index[b]`` only. One gather for the
    whole batch.
    """
    height, width = images.shape[-2:]
    rows = _offsets(key, "row", index, crop_padding) + torch.arange(height, device=images.device)
    columns = _offsets(key, "column", index, crop_padding) + torch.arange(width, device=images.device)
    if flip:
        mirrored = counter_rng.uniform(counter_rng.key(key, "flip"), index) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (crop_padding,) * 4)
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _offsets(key: int, direction: str, index: Tensor, crop_padding: int) -> Tensor:
    """Return where each sample's crop begins in the padded image, int64 (B, 1)."""
    uniform = counter_rng.uniform(counter_rng.key(key, "crop", direction), index)
    return (uniform * (2 * crop_padding + 1)).long()[:, None]


def _per_channel(values: tuple[float, ...], inputs: Tensor) -> Tensor:
    """Return the values in the inputs' dtype and device, to be broadcast over a batch (B, C, ...)."""
    shape = (-1, *[1] * (inputs.dim() - 2))
    return torch.tensor(values, dtype=inputs.dtype, device=inputs.device).reshape(shape)
