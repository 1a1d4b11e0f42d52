"""A compiled pass returns exactly what the tensor operations do: same masks, same order, same digests."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distsparse.ops import counter_rng, kernels
from distsparse.ops import threads as pool
from distsparse.ops.compare import compare
from distsparse.ops.keep import Keep
from distsparse.ops.select import Magnitudes, RandomBits, Scores, filled_mask, top_k_counts, top_k_mask

SIZES = [1, 7, 8, 63, 64, 4095, 4096, 4097, 20_000, 70_001]
CPU = torch.device("cpu")


def both(monkeypatch: pytest.MonkeyPatch, function: Callable[[], object]) -> tuple[object, object]:
    """A function's results without and with compiled passes."""
    monkeypatch.setattr(kernels, "LEAST", 1 << 60)
    plain = function()
    monkeypatch.setattr(kernels, "LEAST", 0)
    return plain, function()


def sources(size: int) -> dict[str, Tensor | Scores]:
    generator = torch.Generator().manual_seed(size)
    normal = torch.randn(size, generator=generator)
    return {
        "magnitudes": Magnitudes(normal),
        "float64": Magnitudes(normal.double()),
        "half": Magnitudes(normal.bfloat16()),
        "ties": Magnitudes((normal * 2).round()),
        "random": RandomBits(12345, CPU),
        "negative key": RandomBits(-7, CPU),
        "made scores": normal,
        "integers": (normal * 3).long(),
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("source", list(sources(1)))
def test_the_same_are_selected(size: int, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = sources(size)[source]
    for density in (0.1, 0.9, 1.0):
        candidates = counter_rng.uniform(size, torch.arange(size)) < density
        for share in (0.0, 0.03, 0.5, 0.97, 1.0):
            k = round(share * int(candidates.sum()))
            plain, compiled = both(monkeypatch, lambda c=candidates, k=k: top_k_mask(scores, k, c))
            assert torch.equal(plain, compiled), (density, share)
            assert int(compiled.sum()) == k


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("source", list(sources(1)))
def test_the_same_are_filled(size: int, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = sources(size)[source]
    for density in (0.0, 0.1, 0.9):
        active = counter_rng.uniform(size, torch.arange(size)) < density
        for share in (0.0, 0.03, 0.5, 1.0):
            k = round(share * int((~active).sum()))
            plain, compiled = both(monkeypatch, lambda a=active, k=k: filled_mask(scores, k, a))
            assert torch.equal(plain, compiled), (density, share)
            assert torch.equal(compiled, active | top_k_mask(scores, k, ~active)), (density, share)


@pytest.mark.parametrize("size", [4097, 70_001])
def test_scores_that_lie_apart_are_selected_like_others(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LEAST", 0)
    apart = torch.randn(2 * size, generator=torch.Generator().manual_seed(size))[::2]
    one = torch.ones(1).expand(size)
    flags = counter_rng.uniform(size, torch.arange(size)) < 0.5
    for values in (apart, one):
        lying, together = Magnitudes(values), Magnitudes(values.contiguous())
        assert torch.equal(top_k_mask(lying, size // 5, flags), top_k_mask(together, size // 5, flags))
        assert torch.equal(filled_mask(lying, size // 5, flags), filled_mask(together, size // 5, flags))
        parts = [lambda scores=scores: (scores, flags) for scores in (lying, together)]
        assert top_k_counts(parts, size // 5) == top_k_counts([parts[1]] * 2, size // 5)


def test_the_loops_change_with_what_they_are_compiled_of() -> None:
    """The compiler's files on disk are told to be old by loops.py alone: enter the new number there."""
    from distsparse.ops import sampling
    from distsparse.ops.kernels import lanes, loops

    sources = [Path(module.__file__).read_bytes() for module in (lanes, sampling)]
    assert zlib.crc32(b"".join(sources)) == loops.TAKEN_IN


def test_a_quick_look_decides_ordinary_scores() -> None:
    """Else every other test here would pass without it."""
    size = 70_001
    active = counter_rng.uniform(1, torch.arange(size)) < 0.1
    num = int(active.sum())
    for fill, k in ((False, 7 * num // 10), (True, 3 * num // 10)):
        normal = torch.randn(size, generator=torch.Generator().manual_seed(1))
        for values in (normal, normal.double(), (1000 * normal).long(), (3 * normal).round()):
            found = kernels.best_magnitudes(values, active, num, k, fill=fill)
            assert found is not None, values.dtype
            assert int(found.sum()) == k + fill * num
        assert kernels.best_random(5, active, num, k, fill=fill) is not None


def normal(num: int) -> Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(num))


@pytest.mark.parametrize(
    "values",
    [
        normal(3000),
        normal(48),
        normal(3000).double().exp().pow(20),
        normal(3000).round(),
        torch.cat([torch.full((2999,), 1e-38), torch.tensor([3e38])]),
        torch.cat([normal(30), torch.tensor([torch.inf, torch.inf, -torch.inf])]),
        torch.full((500,), 1e-45),
        counter_rng.bits(3, torch.arange(3000)),
        torch.tensor([torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max] * 50),
        torch.tensor([2.5]),
    ],
)
def test_kth_largest_is_that_of_a_sort(values: Tensor) -> None:
    from distsparse.ops.kernels import loops

    ordered = values.sort(descending=True).values
    for k in {1, 2, 10, len(values) // 3, len(values) - 1, len(values)} & set(range(1, len(values) + 1)):
        known, found = loops.kth_largest(values.numpy(), k)
        assert known
        assert found == ordered[k - 1].item(), k
    if values.is_floating_point():
        with_nan = torch.cat([values, values.new_tensor([torch.nan])])
        assert not loops.kth_largest(with_nan.numpy(), 1)[0]


@pytest.mark.parametrize(
    "values",
    [
        torch.cat([normal(50), torch.tensor([torch.inf])]),
        torch.arange(3000) + (1 << 62),  # float64 cannot tell a thousand of them apart
    ],
)
def test_kth_largest_is_left_to_others_where_no_bins_can_be_made(values: Tensor) -> None:
    from distsparse.ops.kernels import loops

    assert not loops.kth_largest(values.numpy(), 20)[0]


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_the_same_is_zeroed_on_several_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 70_016
    monkeypatch.setattr(kernels, "LEAST", 0)
    candidates = counter_rng.uniform(1, torch.arange(size)) < 0.5

    def everything() -> Tensor:
        zeroed = torch.ones(size)
        Keep.of(candidates, zeroed).apply(zeroed)
        return zeroed

    one = everything()
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(pool, "LEAST", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert 1 < len(pool.in_parts(size, lambda *each: ranges.append(each))) <= threads
    assert sorted(stop for _, stop in ranges)[-1] == size
    assert torch.equal(one, everything())


@pytest.mark.parametrize("source", list(sources(1)))
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_counts_over_layers(source: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (300, 70_001, 9000)
    flags = [counter_rng.uniform(size, torch.arange(size)) < 0.8 for size in sizes]
    names: set[str] = set()

    def part(place: int) -> tuple[Tensor | Scores, Tensor]:
        names.add(threading.current_thread().name)
        return sources(sizes[place])[source], flags[place]

    parts = [partial(part, place) for place in range(3)]
    num = sum(int(each.sum()) for each in flags)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for k in (1, 5000, num - 2):
        plain, compiled = both(monkeypatch, lambda k=k: top_k_counts(parts, k))
        assert plain == compiled
        assert sum(compiled) == k
    read_in_place = source not in ("half", "made scores", "integers")
    assert (len(names) > 1) == (read_in_place and threads > 1)


@pytest.mark.parametrize("tied", [0.0, 1.0])
def test_one_value_at_every_place_fills_the_room_again(tied: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = Magnitudes(torch.full((100_000,), tied))
    monkeypatch.setattr(kernels, "LEAST", 0)
    mask = top_k_mask(scores, 40_000, torch.ones(100_000, dtype=torch.bool))
    assert bool(mask[:40_000].all())
    assert not bool(mask[40_000:].any())


def test_infinite_scores_are_selected_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(3))
    values[::3] = float("inf")
    values[1::3] = -float("inf")
    everything = torch.ones(20_000, dtype=torch.bool)
    for k in (100, 6_000, 10_000, 15_000, 19_000):
        for scores in (values, Magnitudes(values)):
            plain, compiled = both(monkeypatch, lambda s=scores, k=k: top_k_mask(s, k, everything))
            assert torch.equal(plain, compiled)
            assert int(compiled.sum()) == k


@pytest.mark.parametrize("place", [0, 4097, 69_999])
def test_a_nan_is_refused_among_candidates_and_ignored_elsewhere(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "LEAST", 0)
    values = torch.randn(70_000, generator=torch.Generator().manual_seed(0))
    values[place] = float("nan")
    candidates = torch.ones(70_000, dtype=torch.bool)
    with pytest.raises(FloatingPointError, match="NaN"):
        top_k_mask(Magnitudes(values), 100, candidates)
    candidates[place] = False
    assert int(top_k_mask(Magnitudes(values), 100, candidates).sum()) == 100


@pytest.mark.parametrize("shape", [(1, 64), (5, 128), (300, 192), (7, 65), (1, 1)])
def test_the_same_comparison(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    places = torch.arange(shape[0] * shape[1])
    mask, before = ((counter_rng.uniform(key, places) < 0.3).reshape(shape) for key in (1, 2))
    for first_row in (0, 3):
        plain, compiled = both(monkeypatch, lambda row=first_row: compare(mask, before, first_row=row))
        assert torch.equal(plain.words, compiled.words)
        assert plain.digest == compiled.digest
        assert plain[2:] == compiled[2:]
        assert compiled[2:] == (int(mask.sum()), int(before.sum()), int((mask ^ before).sum()))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("whole", [torch.int32, torch.int64])
def test_values_are_spread_and_all_else_is_zero(
    size: int, density: float, dtype: torch.dtype, whole: torch.dtype
) -> None:
    index = (counter_rng.uniform(size, torch.arange(size)) < density).nonzero().squeeze(1)
    values = torch.randn(len(index), generator=torch.Generator().manual_seed(0)).to(dtype)
    into = torch.full((size,), torch.nan, dtype=dtype)
    kernels.spread(values, index.to(whole), into)
    assert torch.equal(into, torch.zeros(size, dtype=dtype).index_copy_(0, index, values))


def test_compiles_where_nothing_can_be_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    from distsparse.ops.kernels import loops

    original = loops.numba.njit

    def njit(**options: bool) -> Callable[..., object]:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return original(**options)

    monkeypatch.setattr(loops.numba, "njit", njit)
    assert loops._compiled(lambda number: number + 1)(1) == 2


def test_not_used_where_entries_are_few_elsewhere_or_in_another_order() -> None:
    large = torch.zeros(256, 256)
    assert kernels.usable(large)
    assert not kernels.usable(large[:4])
    assert not kernels.usable(large.t().contiguous().t())
    assert not kernels.usable(large, large.to("meta"))
