"""|gradient| summed over the steps before an update, and updates put off by a gradient that is not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distsparse.core import Rewired, Sparsifier
from distsparse.methods import rigl, set_

NAN, INF = float("nan"), float("inf")


class Rig:
    """A 4 × 5 layer with gradients set by hand; α is 1, so the score alone chooses the whole topology."""

    def __init__(
        self, *, window: int = 1, delta_T: int = 5, method: str = "rigl", total_steps: int = 20
    ) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 4, bias=False)
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)
        keywords = {"sparsity": 0.75, "delta_T": delta_T, "alpha": 1.0, "T_end": 1.0}
        chosen = (
            rigl(**keywords, alpha_schedule="constant", grad_accumulation=window)
            if method == "rigl"
            else set_(**keywords)
        )
        self.sparsifier = Sparsifier.attach(chosen, self.layer, optimizer, total_steps=total_steps, seed=0)
        self.sparsifier.initialize()

    def step(self, gradient: Tensor) -> Rewired | None:
        self.layer.weight.grad = gradient.clone()
        return self.sparsifier.step()

    @property
    def mask(self) -> Tensor:
        return self.sparsifier.topology.masks["weight"]


def gradients(num: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 5, generator=generator) for _ in range(num)]


def best_five(score: Tensor) -> Tensor:
    mask = torch.zeros(20, dtype=torch.bool)
    mask[score.flatten().argsort(descending=True)[:5]] = True
    return mask.reshape(4, 5)


def test_one_step_by_default() -> None:
    rig, values = Rig(), gradients(6)
    events = [rig.step(value) for value in values]
    assert [event is not None for event in events] == [False] * 5 + [True]
    assert torch.equal(rig.mask, best_five(values[5].abs()))


@pytest.mark.parametrize("window", [2, 3, 5])
def test_window_sums_magnitudes_of_the_last_steps(window: int) -> None:
    rig, values = Rig(window=window), gradients(11)
    for update in (5, 10):
        for step in range(update - 5 + (update > 5), update + 1):
            rig.step(values[step])
        score = sum(value.abs() for value in values[update - window + 1 : update + 1])
        assert torch.equal(rig.mask, best_five(score))
        # Not the magnitude of the sum, and not another window.
        assert not torch.equal(rig.mask, best_five(sum(values[update - window + 1 : update + 1]).abs()))
        assert not torch.equal(rig.mask, best_five(values[update].abs()))


def test_a_window_longer_than_delta_t_starts_after_the_last_update() -> None:
    rig, values = Rig(window=7, delta_T=3), gradients(7)
    for value in values:
        rig.step(value)
    assert torch.equal(rig.mask, best_five(sum(value.abs() for value in values[4:7])))


def test_nothing_is_summed_outside_the_window() -> None:
    rig = Rig(window=2)
    for step, value in enumerate(gradients(4)):
        rig.step(value)
        assert rig.sparsifier.state_dict()["gradients"]["grad_abs"] == {}, step
    rig.step(gradients(5)[4])
    assert list(rig.sparsifier.state_dict()["gradients"]["grad_abs"]) == ["weight"]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("method", ["rigl", "set"])
def test_a_gradient_that_is_not_finite_defers_the_update(bad: float, method: str) -> None:
    rig, values = Rig(method=method), gradients(9)
    before = rig.mask
    for value in values[:5]:
        rig.step(value)
    for step in (5, 6):
        broken = values[step].clone()
        broken[3, 4] = bad
        assert rig.step(broken) is None
        assert torch.equal(rig.mask, before)
        assert rig.sparsifier.statistics.num_deferred == 1
        assert (rig.layer.weight.grad[~rig.mask] == 0).all()
    event = rig.step(values[7])
    assert event.step == 7
    assert event.num_grown > 0
    if method == "rigl":
        assert torch.equal(rig.mask, best_five(values[7].abs()))
    assert rig.step(values[8]) is None
    assert rig.sparsifier.statistics.num_updates == 1


def test_infinities_of_both_signs_are_seen() -> None:
    rig, values = Rig(delta_T=1), gradients(2)
    rig.step(values[0])
    values[1][0, 0], values[1][0, 1] = INF, -INF
    assert rig.step(values[1]) is None


def test_after_t_end_a_deferred_update_still_takes_place() -> None:
    rig = Rig(total_steps=6)
    rig.sparsifier.method.stop_step(6)
    values = gradients(7)
    for value in values[:5]:
        rig.step(value)
    assert rig.step(torch.full((4, 5), NAN)) is None
    assert rig.step(values[6]).step == 6


def test_a_window_leaves_out_what_is_not_finite() -> None:
    rig, values = Rig(window=3), gradients(6)
    for step in range(6):
        event = rig.step(torch.full((4, 5), NAN) if step == 4 else values[step])
    assert event is not None
    assert rig.sparsifier.statistics.num_deferred == 0
    assert torch.equal(rig.mask, best_five(values[3].abs() + values[5].abs()))


def test_a_deferred_window_goes_on() -> None:
    rig, values = Rig(window=2), gradients(7)
    for step in range(6):
        event = rig.step(torch.full((4, 5), INF) if step == 5 else values[step])
    assert event is None
    assert rig.sparsifier.statistics.num_deferred == 1
    assert rig.step(values[6]) is not None
    assert torch.equal(rig.mask, best_five(values[4].abs() + values[6].abs()))
