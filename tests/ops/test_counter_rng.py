from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch

from distsparse.ops import counter_rng

WORD = (1 << 64) - 1


def splitmix64(counter: int) -> int:
    """SplitMix64's finalizer with Python's integers, from the paper's constants."""
    z = counter & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def unsigned(values: torch.Tensor) -> list[int]:
    return [value & WORD for value in values.tolist()]


def test_mix_equals_python_integers() -> None:
    words = [0, 1, 2, 0x9E3779B97F4A7C15, 1 << 63, WORD, 0x0123456789ABCDEF]
    signed = torch.tensor([w - (1 << 64) if w >> 63 else w for w in words])
    assert unsigned(counter_rng.mix(signed)) == [splitmix64(w) for w in words]


def test_bits_are_the_published_sequence() -> None:
    # The first outputs of SplitMix64 with seed 0: its state is the golden gamma times 1, 2, 3.
    assert unsigned(counter_rng.bits(0, torch.tensor([1, 2, 3]))) == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_bits_of_any_key_equal_python_integers() -> None:
    key = counter_rng.key(3, 100, "layer", "grow")
    index = [0, 1, 17, 2**40, 2**62]
    expected = [splitmix64(i * 0x9E3779B97F4A7C15 + key) for i in index]
    assert unsigned(counter_rng.bits(key, torch.tensor(index))) == expected


def test_bits_depend_on_index_not_on_position() -> None:
    index = torch.arange(1000)
    whole = counter_rng.bits(5, index)
    assert torch.equal(whole[700:], counter_rng.bits(5, index[700:]))
    assert whole.unique().numel() == 1000


def test_key_is_fixed_for_all_time() -> None:
    # blake2b of "int:0 int:0 str:0.weight str:prune", joined by 0x1f; another value is another topology.
    assert counter_rng.key(0, 0, "0.weight", "prune") == -9011101215894354893


def test_key_tells_parts_apart() -> None:
    keys = [
        counter_rng.key(1, 23),
        counter_rng.key(12, 3),
        counter_rng.key("1", 23),
        counter_rng.key(1, "23"),
        counter_rng.key(23, 1),
        counter_rng.key(123),
    ]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_uniform_is_uniform_on_the_unit_interval() -> None:
    values = counter_rng.uniform(counter_rng.key("u"), torch.arange(200_000))
    assert values.dtype == torch.float64
    assert values.min() >= 0
    assert values.max() < 1
    # Standard errors are 0.00065 (mean) and, for a bin of 1/100, sqrt(2000) = 45 counts.
    assert abs(float(values.mean()) - 0.5) < 0.003
    counts = torch.histc(values, bins=100, min=0, max=1)
    assert (counts - 2000).abs().max() < 230
    neighbours = torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]
    assert abs(float(neighbours)) < 0.01


def test_uniform_is_the_upper_53_bits() -> None:
    index = torch.arange(50)
    expected = [(splitmix64(i * 0x9E3779B97F4A7C15 + 9) >> 11) / 2**53 for i in range(50)]
    assert counter_rng.uniform(9, index).tolist() == expected


def test_permutation() -> None:
    order = counter_rng.permutation(7, 1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() != list(range(1000))
    assert torch.equal(order, counter_rng.permutation(7, 1000))
    assert not torch.equal(order, counter_rng.permutation(8, 1000))
    assert counter_rng.permutation(7, 0).tolist() == []


def test_normal_is_box_mullers_transform() -> None:
    key = counter_rng.key(3, 100, "layer", "grow_init")
    index = torch.tensor([0, 1, 5, 2**40])
    one, two = (counter_rng.uniform(key, 2 * index + part).tolist() for part in (0, 1))
    expected = [
        math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v) for u, v in zip(one, two, strict=True)
    ]
    torch.testing.assert_close(counter_rng.normal(key, index), torch.tensor(expected, dtype=torch.float64))


def test_normal_has_the_normal_distribution() -> None:
    values = counter_rng.normal(7, torch.arange(100_000))
    for quantile in (0.01, 0.1, 0.5, 0.9, 0.99):
        below = float((values < NormalDist().inv_cdf(quantile)).double().mean())
        assert abs(below - quantile) < 4 * math.sqrt(quantile * (1 - quantile) / 100_000)
    neighbours = torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]
    assert abs(float(neighbours)) < 0.015


@pytest.mark.parametrize("n", [0, 1, 1 << 14, (1 << 14) + 1, 40_000])
@pytest.mark.parametrize("start", [0, 5])
def test_bits_between_are_those_of_the_indices(start: int, n: int) -> None:
    between = counter_rng.bits_between(7, start, start + n, torch.device("cpu"))
    assert torch.equal(between, counter_rng.bits(7, torch.arange(start, start + n)))


@pytest.mark.parametrize("shape", [(), (0,), (3, 5)])
def test_words_are_mixed_alike_in_numpy_and_in_torch(shape: tuple[int, ...]) -> None:
    words = torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(0))
    kept = words.clone()
    assert torch.equal(counter_rng._mix_in_numpy(words), counter_rng._mix_in_torch(words))
    assert torch.equal(words, kept)


@pytest.mark.parametrize("first", [0, 7, 2**40])
def test_a_key_from_a_place_on(first: int) -> None:
    key = counter_rng.key(1, "a")
    index = torch.arange(20)
    assert torch.equal(
        counter_rng.bits(counter_rng.key_from(key, first), index), counter_rng.bits(key, index + first)
    )
