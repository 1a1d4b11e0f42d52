from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch

from distsparse.ops import allocation
from distsparse.ops.allocation import (
    apportion,
    er,
    erk,
    num_active,
    sensitivity,
    sensitivity_of,
    sensitivity_sparsities,
    uniform,
)

LENET = [(300, 784), (100, 300), (10, 100)]
CONVNET = [(64, 3, 7, 7), (64, 64, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1), (512, 512, 3, 3), (1000, 2048)]


def sizes(shapes: list[tuple[int, ...]]) -> list[int]:
    return [math.prod(shape) for shape in shapes]


def sparsities(counts: list[int], shapes: list[tuple[int, ...]]) -> list[float]:
    return [1 - count / size for count, size in zip(counts, sizes(shapes), strict=True)]


def largest_remainder(shares: list[int], total: int, caps: list[int]) -> list[int]:
    """Brute force: raise the scale of all shares together; an entry stops at its cap."""
    fixed: dict[int, int] = {}
    while True:
        rest = [i for i in range(len(shares)) if i not in fixed and shares[i] > 0]
        left = total - sum(fixed.values())
        ideal = {i: Fraction(left * shares[i], sum(shares[j] for j in rest)) for i in rest}
        over = [i for i in rest if ideal[i] >= caps[i]]
        if not over:
            break
        fixed.update({i: caps[i] for i in over})
    counts = [fixed.get(i, int(ideal.get(i, 0))) for i in range(len(shares))]
    while sum(counts) < total:
        best = max(rest, key=lambda i: (ideal[i] - counts[i], -i))
        counts[best] += 1
    return counts


def random_case(rng: random.Random) -> tuple[list[int], int, list[int]]:
    n = rng.randint(1, 7)
    caps = [rng.choice([0, 1, 2, 5, 20, 100, 1000]) for _ in range(n)]
    shares = [rng.choice([0, 1, 1, 2, 3, 10, 100]) for _ in range(n)]
    room = sum(cap for cap, share in zip(caps, shares, strict=True) if share)
    return shares, rng.randint(0, room), caps


def test_apportion_equals_brute_force_where_no_layer_would_be_empty() -> None:
    rng = random.Random(0)
    compared = 0
    for _ in range(2000):
        shares, total, caps = random_case(rng)
        expected = largest_remainder(shares, total, caps)
        if all(e > 0 or c == 0 or s == 0 for e, c, s in zip(expected, caps, shares, strict=True)):
            compared += 1
            assert apportion(shares, total, caps) == expected, (shares, total, caps)
    assert compared > 500


def test_apportion_invariants() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        shares, total, caps = random_case(rng)
        counts = apportion(shares, total, caps)
        assert sum(counts) == total
        assert all(0 <= count <= cap for count, cap in zip(counts, caps, strict=True))
        assert all(count == 0 for count, share in zip(counts, shares, strict=True) if share == 0)
        wanted = [i for i in range(len(caps)) if shares[i] > 0 and caps[i] > 0]
        if total >= len(wanted):
            assert all(counts[i] > 0 for i in wanted), (shares, total, caps, counts)


@pytest.mark.parametrize(
    ("shares", "total", "caps", "expected"),
    [
        # 3.5 and 3.5: the tie goes to the lower index
        ([1, 1], 7, [9, 9], [4, 3]),
        # 2/3, 20/3, 8/3: equal remainders again, and only two units to give
        ([1, 10, 4], 10, [99, 99, 99], [1, 7, 2]),
        # the first is full at 2; 8 left are split 1 : 3
        ([10, 1, 3], 10, [2, 50, 50], [2, 2, 6]),
        # filling the first fills the second: 20 · 1/2 = 10, and then 19 · 9/10 > 12
        ([100, 90, 10], 20, [1, 12, 50], [1, 12, 7]),
        # 0.01 of a unit, and yet not cut off: one unit comes from the largest
        ([1, 1000], 10, [5, 50], [1, 9]),
        ([1, 1000], 1, [5, 50], [0, 1]),
        ([0, 3], 2, [5, 5], [0, 2]),
        ([2, 3], 10, [5, 5], [5, 5]),
    ],
)
def test_apportion_by_hand(shares: list[float], total: int, caps: list[int], expected: list[int]) -> None:
    assert apportion(shares, total, caps) == expected


@pytest.mark.parametrize("total", [-1, 11])
def test_apportion_of_too_much(total: int) -> None:
    with pytest.raises(ValueError, match=f"cannot place {total} active weights .* room for 10"):
        apportion([1, 2, 0], total, [5, 5, 5])


@pytest.mark.parametrize(
    ("num_weights", "sparsity", "expected"), [(1000, 0.9, 100), (1000, 0.0, 1000), (7, 0.5, 3), (9, 0.99, 0)]
)
def test_num_active(num_weights: int, sparsity: float, expected: int) -> None:
    assert num_active(num_weights, sparsity) == expected


def test_erk_of_convolutions_as_published() -> None:
    total = num_active(sum(sizes(CONVNET)), 0.9)
    counts = erk(CONVNET, total, sizes(CONVNET))
    assert sum(counts) == total
    expected = [0.14379, 0, 0.638511, 0, 0.956584, 0.851995]
    assert sparsities(counts, CONVNET) == pytest.approx(expected, abs=1e-4)
    # ε is one for all layers that are not dense: counts are in the ratio of n_in + n_out + k_h + k_w.
    assert counts[0] / 81 == pytest.approx(counts[4] / 1030, rel=1e-2)
    assert counts[2] / 134 == pytest.approx(counts[5] / 3048, rel=1e-2)


@pytest.mark.parametrize("allocate", [er, erk])
def test_lenet_300_100_as_published(allocate: allocation.Allocation) -> None:
    total = num_active(sum(sizes(LENET)), 0.9)
    counts = allocate(LENET, total, sizes(LENET))
    assert sum(counts) == total == 26620
    # The reference rounds each layer by itself, so it may be off by one weight.
    for got, expected, size in zip(
        sparsities(counts, LENET), [0.920432, 0.769811, 0], sizes(LENET), strict=True
    ):
        assert abs(got - expected) <= 1 / size + 5e-7


def test_er_gives_every_tap_the_density_of_its_channel_matrix() -> None:
    # Counts ∝ (n_in + n_out) · taps: (8 + 8) · 9 = 144 and (16 + 32) · 1 = 48, so 3 : 1.
    assert er([(8, 8, 3, 3), (32, 16)], 200, [576, 512]) == [150, 50]
    # ERK: 8 + 8 + 3 + 3 = 22 against 48.
    assert erk([(8, 8, 3, 3), (32, 16)], 210, [576, 512]) == [66, 144]


@pytest.mark.parametrize("allocate", [uniform, er, erk])
def test_shapes_decide_as_their_formulas_say(allocate: allocation.Allocation) -> None:
    """Against integer shares: size, (n_in + n_out) · taps, and the sum of all dimensions."""
    rng = random.Random(3)
    num_full = 0
    for _ in range(500):
        shapes = [
            (rng.randint(1, 30), rng.randint(1, 30), *rng.choice([(), (3,), (3, 3), (1, 5)]))
            for _ in range(rng.randint(1, 6))
        ]
        caps = [rng.randint(0, size) if rng.random() < 0.2 else size for size in sizes(shapes)]
        total = rng.randint(0, sum(caps))
        shares = {
            uniform: sizes(shapes),
            er: [(shape[0] + shape[1]) * math.prod(shape[2:]) for shape in shapes],
            erk: [sum(shape) for shape in shapes],
        }[allocate]
        counts = allocate(shapes, total, caps)
        expected = largest_remainder(shares, total, caps)
        assert sum(counts) == total
        # Two near ties may be settled differently in floats, and an empty layer gets a weight of the largest.
        spare = expected.count(0) + 1
        for count, wanted, cap in zip(counts, expected, caps, strict=True):
            assert 0 <= count <= cap
            assert abs(count - wanted) <= spare
        num_full += sum(count == cap > 1 for count, cap in zip(counts, caps, strict=True))
    assert num_full > 100


def test_power_zero_is_uniform() -> None:
    for shapes in (LENET, CONVNET):
        total = num_active(sum(sizes(shapes)), 0.9)
        for allocate in (er, erk):
            expected = uniform(shapes, total, sizes(shapes))
            assert allocate(shapes, total, sizes(shapes), power=0.0) == expected


def test_uniform() -> None:
    counts = uniform(LENET, num_active(sum(sizes(LENET)), 0.9), sizes(LENET))
    assert counts == [23520, 3000, 100]


def test_uniform_with_a_dense_first_layer() -> None:
    shapes = [(10, 10), (20, 20), (5, 20)]
    assert uniform(shapes, 200, [100, 400, 100], first_dense=True) == [100, 80, 20]
    assert uniform(shapes[:1], 30, [100], first_dense=True) == [30]
    with pytest.raises(ValueError, match="takes 100 active weights, and only 99"):
        uniform(shapes, 99, [100, 400, 100], first_dense=True)


def test_saturated_layers_lose_no_density() -> None:
    for sparsity in (0.0, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99, 0.999):
        for shapes in (LENET, CONVNET):
            total = num_active(sum(sizes(shapes)), sparsity)
            for allocate in (uniform, er, erk):
                counts = allocate(shapes, total, sizes(shapes))
                assert sum(counts) == total
                assert all(0 < count <= size for count, size in zip(counts, sizes(shapes), strict=True))


def test_sparsity_is_inverse_to_sensitivity() -> None:
    shapes = [(10, 100), (10, 100), (20, 100)]
    # s = c / sensitivity: c (1 + 1/2 + 2 · 1/4) · 1000 = 1600 inactive gives c = 0.8.
    counts = sensitivity(shapes, 2400, sizes(shapes), sensitivities=[1.0, 2.0, 4.0])
    assert sparsities(counts, shapes) == pytest.approx([0.8, 0.4, 0.2])
    # Only ratios matter.
    assert sensitivity(shapes, 2400, sizes(shapes), sensitivities=[1e-9, 2e-9, 4e-9]) == counts


def test_sensitivity_is_capped_and_the_rest_solved_again() -> None:
    shapes = [(10, 100), (10, 100), (20, 100)]
    # Without a cap the first would be at 1.2; at 0.99 it leaves 2400 - 990 for (1/2 + 2 · 1/4) c · 1000.
    counts = sensitivity(shapes, 1600, sizes(shapes), sensitivities=[1.0, 2.0, 4.0])
    assert sparsities(counts, shapes) == pytest.approx([0.99, 0.705, 0.3525])
    assert sum(counts) == 1600


def test_no_layer_is_above_the_cap_while_there_is_room() -> None:
    # 0.99 · 150 = 148.5: a limit rounded up would be 0.9933.
    counts = sensitivity([(10, 15), (10, 15)], 60, [150, 150], sensitivities=[1e-3, 1.0])
    assert counts == [2, 58]


def test_above_the_cap_the_global_sparsity_is_the_limit() -> None:
    shapes = [(10, 100), (20, 100)]
    assert sensitivity(shapes, 15, sizes(shapes), sensitivities=[1.0, 50.0]) == [5, 10]
    # No layer is emptied for rounding's sake.
    assert sensitivity([(2, 5), (10, 10)], 11, [10, 100], sensitivities=[1e-9, 1.0])[0] >= 1


def test_zero_sensitivity_is_as_sparse_as_allowed() -> None:
    shapes = [(10, 100), (10, 100)]
    assert sensitivity(shapes, 900, [1000, 1000], sensitivities=[0.0, 1.0]) == [10, 890]
    assert sensitivity(shapes, 900, [1000, 1000], sensitivities=[0.0, 0.0]) == [450, 450]


def test_sensitivity_respects_what_is_already_inactive() -> None:
    # The second layer has 700 active: 300 are inactive whatever its sensitivity; 500 more go 4 : 1.
    counts = sensitivity([(10, 100), (10, 100)], 1200, [1000, 700], sensitivities=[1.0, 4.0])
    assert counts == [600, 600]
    with pytest.raises(ValueError, match="cannot place 1800"):
        sensitivity([(10, 100), (10, 100)], 1800, [1000, 700], sensitivities=[1.0, 4.0])


def test_sensitivity_invariants() -> None:
    rng = random.Random(2)
    for _ in range(500):
        shapes = [(rng.randint(1, 40), rng.randint(1, 40)) for _ in range(rng.randint(1, 6))]
        values = [rng.choice([0.0, rng.random(), 1e-6, 1e6]) for _ in shapes]
        total = rng.randint(0, sum(sizes(shapes)))
        counts = sensitivity(shapes, total, sizes(shapes), sensitivities=values)
        assert sum(counts) == total
        limit = max(0.99, 1 - total / sum(sizes(shapes)))
        for count, size in zip(counts, sizes(shapes), strict=True):
            assert 0 <= count <= size
            assert size - count <= math.ceil(limit * size)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_sensitivities(bad: float) -> None:
    with pytest.raises(ValueError, match="must be finite and at least 0"):
        sensitivity([(2, 2), (2, 2)], 4, [4, 4], sensitivities=[1.0, bad])


def test_norms() -> None:
    gradient = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert sensitivity_of(gradient, "l2") == 5.0
    assert sensitivity_of(gradient, "rms") == sensitivity_of(gradient) == 2.5
    assert sensitivity_of(gradient, "mean_abs") == 1.75
    with pytest.raises(ValueError, match="'l1': allowed are rms, l2, mean_abs"):
        sensitivity_of(gradient, "l1")  # type: ignore[arg-type]
    # Squares of half-precision gradients would underflow.
    assert sensitivity_of(torch.full((4, 4), 2.0**-14, dtype=torch.float16)) == 2.0**-14


def test_plain_dictionaries() -> None:
    gradients = {"a": torch.full((50,), 0.1), "b": torch.full((4, 50), -0.4)}
    shapes = {"a": (5, 10), "b": (10, 20)}
    # rms: c / 0.1 · 50 + c / 0.4 · 200 = 125 inactive gives c = 0.125; 1.25 is capped at 49 of 50,
    # and 76 inactive are left for the other.
    result = sensitivity_sparsities(gradients, shapes, sparsity=0.5)
    assert result == pytest.approx({"a": 0.98, "b": 0.38})
    # l2: 0.1 √50 against 0.4 √200 is 1 : 8; c (50 + 200 / 8) = 25 gives c = 1/3, so 16.7 and 8.3.
    result = sensitivity_sparsities(gradients, shapes, sparsity=0.1, norm="l2")
    assert result == pytest.approx({"a": 17 / 50, "b": 8 / 200})
    with pytest.raises(ValueError, match=r"different layers: \['b'\]"):
        sensitivity_sparsities(gradients, {"a": (5, 10)}, sparsity=0.5)
    with pytest.raises(ValueError, match=r"sparsity = 1\.0"):
        sensitivity_sparsities(gradients, shapes, sparsity=1.0)
