"""Fixed random partitions of a data set, and statistics of its pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from distsparse.data.dataset import Split
from distsparse.ops import counter_rng


def fixed_subset(name: str, num_samples: int, limit: int | None) -> Tensor:
    """Return ``limit`` of ``num_samples`` positions, ascending: drawn at random, the same in every run.

    All positions when ``limit`` is None or not below ``num_samples``. Random, because public data sets are
    often stored class by class.
    """
    if limit is None or limit >= num_samples:
        return torch.arange(num_samples)
    order = counter_rng.permutation(counter_rng.key("subset", name), num_samples)
    return order[:limit].sort().values


def hold_out(split: Split, count: int) -> tuple[Split, Split | None]:
    """Return the split without ``count`` samples, and those samples: drawn at random, the same in every run.

    Both parts keep the split's order. Independent of a run's seed, so that trials of a sweep are compared on
    the same samples.

    Raises:
        ValueError: nothing would be left to train on.
    """
    if count == 0:
        return split, None
    if count >= len(split):
        raise ValueError(f"data.validation = {count}: must be below the {len(split)} training samples")
    order = counter_rng.permutation(counter_rng.key("validation"), len(split))
    train, validation = order[:-count].sort().values, order[-count:].sort().values
    return split.take(train), split.take(validation)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population standard deviation of each channel of uint8 images (N, C, H, W), over 255.

    Exact integer counts of each pixel value, so the order of summation does not matter.

    Raises:
        ValueError: a channel is constant.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        means.append(float(mean))
        stds.append(float((share * (values - mean) ** 2).sum().sqrt()))
    if min(stds) == 0:
        raise ValueError("data.normalize = True: a channel of the training images is constant")
    return tuple(means), tuple(stds)
