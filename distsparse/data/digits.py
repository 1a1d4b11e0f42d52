"""Handwritten digits of 8x8 pixels (Alpaydin & Kaynak, 1998, UCI), bundled with scikit-learn: no download."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field

from distsparse.data.dataset import Dataset, Split
from distsparse.data.registry import datasets
from distsparse.data.settings import CropPadding, Flip, Normalize, Validation
from distsparse.data.splits import channel_statistics, hold_out
from distsparse.ops import counter_rng

TestFraction = Annotated[
    float,
    Field(
        gt=0, lt=1, description="share of the 1,797 samples to test on, rounded up; the rest is trained on"
    ),
]


@datasets.register("digits")
def digits(
    *,
    validation: Validation = 0,
    test_fraction: TestFraction = 0.2,
    normalize: Normalize = False,
    crop_padding: CropPadding = 0,
    flip: Flip = False,
) -> Dataset:
    """Load 1,797 real 8x8 grey images of ten digits: 1,437 to train on and 360 to test on.

    The split is a fixed shuffle, the same in every run. Pixel values 0 to 16 become 0 to 255, rounded.

    Raises:
        ValueError: ``validation`` or ``test_fraction`` leaves nothing to train on.
    """
    from sklearn.datasets import load_digits  # slow to import, and only this data set needs it

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    samples = Split(images, torch.from_numpy(bunch.target).to(torch.int64))
    num_test = math.ceil(test_fraction * len(samples))
    if num_test >= len(samples):
        raise ValueError(
            f"data.test_fraction = {test_fraction}: leaves none of {len(samples)} samples to train on"
        )
    order = counter_rng.permutation(counter_rng.key("digits"), len(samples))
    train, held_out = hold_out(samples.take(order[:-num_test]), validation)
    mean, std = channel_statistics(train.inputs) if normalize else (None, None)
    return Dataset(
        name="digits",
        train=train,
        validation=held_out,
        test=samples.take(order[-num_test:]),
        num_classes=10,
        input_shape=(1, 8, 8),
        mean=mean,
        std=std,
        crop_padding=crop_padding,
        flip=flip,
    )
