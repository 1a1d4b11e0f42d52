from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distsparse.data import Dataset, Split, augmentation_key, batch, build, epoch_order
from distsparse.ops import counter_rng


def dataset(inputs: Tensor, **settings) -> Dataset:
    split = Split(inputs, torch.arange(len(inputs)) % 3)
    return Dataset(
        name="x",
        train=split,
        validation=None,
        test=split,
        num_classes=3,
        input_shape=tuple(inputs.shape[1:]),
        **settings,
    )


def pixels(n: int = 40, channels: int = 3, height: int = 6, width: int = 7) -> Tensor:
    return torch.randint(
        1, 256, (n, channels, height, width), generator=torch.Generator().manual_seed(0)
    ).byte()


def reference(image: Tensor, index: int, key: int, padding: int, flip: bool) -> Tensor:
    """Crop and mirror one image pixel by pixel."""

    def draw(*parts: str) -> float:
        return float(counter_rng.uniform(counter_rng.key(key, *parts), torch.tensor([index]))[0])

    down = int(draw("crop", "row") * (2 * padding + 1)) - padding
    right = int(draw("crop", "column") * (2 * padding + 1)) - padding
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                result[:, y, x] = image[:, y + down, x + right]
    if flip and draw("flip") < 0.5:
        result = torch.stack([result[:, :, width - 1 - x] for x in range(width)], dim=2)
    return result


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (3, False), (0, True), (9, True)])
def test_augmentation_equals_one_sample_at_a_time(padding: int, flip: bool) -> None:
    data = dataset(pixels(), crop_padding=padding, flip=flip)
    index = torch.tensor([7, 3, 39, 0, 12, 12, 21, 30])
    inputs, labels = batch(data.train, index, dataset=data, key=99)
    for position, sample in enumerate(index.tolist()):
        expected = reference(data.train.inputs[sample], sample, 99, padding, flip)
        assert torch.equal(inputs[position], expected.float() / 255)
    assert labels.tolist() == [n % 3 for n in index.tolist()]


def test_a_batch_is_its_two_halves() -> None:
    data = dataset(pixels(), crop_padding=2, flip=True, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    index = epoch_order(seed=1, epoch=2, num_samples=40)
    whole, labels = batch(data.train, index, dataset=data, key=5)
    halves = [batch(data.train, half, dataset=data, key=5) for half in (index[:13], index[13:])]
    assert torch.equal(whole, torch.cat([inputs for inputs, _ in halves]))
    assert torch.equal(labels, torch.cat([labels for _, labels in halves]))


def test_every_offset_and_both_directions_are_drawn_equally_often() -> None:
    width = 5
    ramp = torch.arange(1, width + 1, dtype=torch.uint8).expand(3000, 1, width, width)
    data = dataset(ramp, crop_padding=1, flip=True)
    inputs, _ = batch(data.train, torch.arange(3000), dataset=data, key=augmentation_key(seed=0, epoch=0))
    rows, counts = torch.unique((inputs[:, 0, 2] * 255).round().long(), dim=0, return_counts=True)
    assert len(rows) == 6
    # 3000 / 6 = 500, standard deviation 20
    assert counts.min() > 420
    assert counts.max() < 580


def test_augmentation_differs_per_key_and_is_off_without_one() -> None:
    data = dataset(pixels(), crop_padding=2, flip=True)
    index = torch.arange(40)
    keys = [augmentation_key(seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)]
    assert len(set(keys)) == 9
    first, second = (batch(data.train, index, dataset=data, key=key)[0] for key in keys[:2])
    assert not torch.equal(first, second)
    plain, _ = batch(data.train, index, dataset=data, key=None)
    assert torch.equal(plain, data.train.inputs.float() / 255)


def test_normalization_by_hand_with_black_padding() -> None:
    image = torch.full((1, 2, 1, 1), 51, dtype=torch.uint8)
    data = dataset(image, mean=(0.1, 0.2), std=(0.5, 0.25))
    inputs, _ = batch(data.train, torch.tensor([0]), dataset=data, key=3)
    assert inputs.flatten().tolist() == pytest.approx([0.2, 0.0], abs=1e-7)
    padded = dataset(image.expand(50, 2, 1, 1), mean=(0.1, 0.2), std=(0.5, 0.25), crop_padding=1)
    inputs, _ = batch(padded.train, torch.arange(50), dataset=padded, key=3)
    assert inputs[:, :, 0, 0].unique(dim=0).flatten().tolist() == pytest.approx(
        [-0.2, -0.8, 0.2, 0.0], abs=1e-6
    )


def test_floating_point_inputs_keep_dtype_and_scale() -> None:
    values = torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(6, 2)
    data = dataset(values)
    inputs, _ = batch(data.train, torch.tensor([5, 1]), dataset=data, key=1)
    assert torch.equal(inputs, values[[5, 1]])


def test_epoch_order_is_a_permutation_per_seed_and_epoch() -> None:
    orders = [
        tuple(epoch_order(seed=s, epoch=e, num_samples=50).tolist()) for s in range(3) for e in range(3)
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 9
    assert orders[0] == tuple(epoch_order(seed=0, epoch=0, num_samples=50).tolist())


def test_digits_augmented_stay_real() -> None:
    data = build("digits", {"crop_padding": 1, "normalize": True})
    inputs, labels = batch(data.train, torch.arange(1437), dataset=data, key=1)
    assert inputs.shape == (1437, 1, 8, 8)
    assert inputs.dtype == torch.float32
    assert torch.equal(labels, data.train.labels)
    plain, _ = batch(data.train, torch.arange(1437), dataset=data, key=None)
    assert plain.mean().item() == pytest.approx(0, abs=1e-5)
    assert plain.std(unbiased=False).item() == pytest.approx(1, abs=1e-5)
