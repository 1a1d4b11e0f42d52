"""Layers on several threads: the outcomes of one, in order, and the first layer's error."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest
import torch
from torch import nn

from distsparse.core import Method, Sparsifier
from distsparse.core.update import Layers
from distsparse.methods import gmp, rigl, set_, snfs
from distsparse.ops import kernels
from distsparse.ops import threads as pool

THREADS = 3


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LEAST", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: THREADS)


@pytest.mark.usefixtures("several")
class TestOfEach:
    def test_outcomes_are_in_order_and_threads_share_the_work(self) -> None:
        everyone = threading.Barrier(THREADS)

        def work(place: int) -> tuple[int, str, bool]:
            if place in (1, 4, 7):  # the largest, which are begun first
                everyone.wait(30)
            return place, threading.current_thread().name, torch.is_grad_enabled()

        found = pool.of_each([2, 9, 3, 1, 9, 2, 1, 9], work)
        assert [place for place, _, _ in found] == list(range(8))
        assert len({name for _, name, _ in found}) == THREADS
        assert not any(grad for _, _, grad in found)
        assert torch.is_grad_enabled()

    def test_the_first_places_error_is_raised_and_all_others_are_done(self) -> None:
        done: list[int] = []

        def work(place: int) -> None:
            if place in (2, 5):
                time.sleep(0.01 * (5 - place))
                raise ValueError(f"at {place}")
            done.append(place)

        with pytest.raises(ValueError, match="at 2"):
            pool.of_each([1] * 8, work)
        assert sorted(done) == [0, 1, 3, 4, 6, 7]

    def test_after_an_interruption_nothing_more_is_begun(self) -> None:
        begun: list[int] = []
        everyone = threading.Barrier(THREADS)

        def work(place: int) -> None:
            begun.append(place)
            everyone.wait(30)
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            time.sleep(0.2)

        with pytest.raises(KeyboardInterrupt):
            pool.of_each([1] * 20, work)
        assert sorted(begun) == list(range(THREADS))
        assert pool.of_each([1, 1], lambda place: place) == [0, 1]

    def test_a_pass_is_not_cut_while_other_layers_are_under_way(self) -> None:
        def num_parts(place: int) -> int:
            return len(pool.in_parts(90_000, lambda first, stop: stop - first))

        assert pool.of_each([20_000, 90_000], num_parts) == [1, 1]
        assert pool.of_each([90_000], num_parts) == [THREADS]


@pytest.mark.parametrize(
    "method",
    [
        rigl(sparsity=0.8, delta_T=2),
        rigl(sparsity=0.8, delta_T=2, grow_init="normal"),
        set_(sparsity=0.8, delta_T=2),
        snfs(sparsity=0.8, delta_T=2),
        gmp(sparsity=0.8, delta_T=2, allocation="global_magnitude"),
    ],
    ids=["rigl", "rigl, grow_init", "set", "snfs", "gmp"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_update_is_the_same_on_several_threads(
    method: Method, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "LEAST", 0)
    names: set[str] = set()
    original = Layers.each

    def noted(self, work):
        return original(self, lambda name: (names.add(threading.current_thread().name), work(name))[1])

    monkeypatch.setattr(Layers, "each", noted)

    def batch(step: int) -> torch.Tensor:
        return torch.randn(8, 64, generator=torch.Generator().manual_seed(step)).to(dtype)

    def outcome() -> list[torch.Tensor]:
        torch.manual_seed(0)
        sizes = [64, 192, 40, *[64] * 6, 100]
        layers = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
        model = nn.Sequential(*layers).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=12, seed=0)
        sparsifier.initialize()
        for step in range(12):
            optimizer.zero_grad()
            model(batch(step)).square().mean().backward()
            event = sparsifier.step()
            if not (event and event.skip_optimizer_step):
                optimizer.step()
        momentum = [optimizer.state[weight]["momentum_buffer"] for weight in model.parameters()]
        return [*model.parameters(), *momentum, *sparsifier.topology.masks.values()]

    alone = outcome()
    assert names == {threading.main_thread().name}
    monkeypatch.setattr(pool, "LEAST", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: THREADS)
    together = outcome()
    assert len(names) > 1
    assert all(bool(one.isfinite().all()) for one in alone)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
