from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from distsparse.core import Sparsifier
from distsparse.methods import rigl
from distsparse.ops.structure import Structure

STEPS = 23


class Trainer:
    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        method = rigl(sparsity=0.8, delta_T=5, grad_accumulation=3, T_end=1.0)
        self.sparsifier = Sparsifier.attach(method, self.model, self.optimizer, total_steps=STEPS, seed=0)

    def train(self, first: int, last: int, *, broken: int | None = None) -> None:
        for step in range(first, last):
            self.optimizer.zero_grad()
            inputs = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step))
            self.model(inputs).square().mean().backward()
            if step == broken:
                self.model[0].weight.grad[0, 0, 0, 0] = float("nan")
            event = self.sparsifier.step()
            if step != broken and not (event and event.skip_optimizer_step):
                self.optimizer.step()

    def state(self) -> dict[str, Any]:
        parts = (self.model, self.optimizer, self.sparsifier)
        return copy.deepcopy({type(p).__name__: p.state_dict() for p in parts})

    def restore(self, state: dict[str, Any]) -> None:
        for part in (self.model, self.optimizer, self.sparsifier):
            part.load_state_dict(state[type(part).__name__])


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


# 9 is inside a gradient window, 12 between two, 10 just before an update, 11 just after it.
@pytest.mark.parametrize("interrupted", [9, 10, 11, 12])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(interrupted: int) -> None:
    whole = Trainer(seed=0)
    whole.sparsifier.initialize()
    whole.train(0, interrupted)
    state = whole.state()
    assert bool(state["Sparsifier"]["gradients"]["grad_abs"]) == (interrupted in (9, 10))
    whole.train(interrupted, STEPS)

    resumed = Trainer(seed=1)
    resumed.restore(state)
    resumed.train(interrupted, STEPS)
    assert_equal(whole.state(), resumed.state())
    assert whole.sparsifier.statistics.num_updates == 4


def test_a_deferred_update_is_resumed() -> None:
    whole = Trainer(seed=0)
    whole.sparsifier.initialize()
    whole.train(0, 11, broken=10)
    state = whole.state()
    assert state["Sparsifier"]["pending"] is True
    whole.train(11, STEPS)
    resumed = Trainer(seed=1)
    resumed.restore(state)
    resumed.train(11, STEPS)
    assert_equal(whole.state(), resumed.state())
    assert whole.sparsifier.statistics.num_deferred == 1


def test_saving_does_not_alias_the_run() -> None:
    trainer = Trainer(seed=0)
    trainer.sparsifier.initialize()
    state = trainer.sparsifier.state_dict()
    saved = copy.deepcopy(state)
    trainer.train(0, 8)
    assert_equal(state, saved)


def test_loading_puts_the_weights_on_the_topology() -> None:
    source, target = Trainer(seed=0), Trainer(seed=1)
    source.sparsifier.initialize()
    target.sparsifier.load_state_dict(source.sparsifier.state_dict())
    for name, weight in target.sparsifier.weights.items():
        mask = source.sparsifier.topology.masks[name]
        assert torch.equal(weight.matrix(weight.parameter.detach()) != 0, mask)


def test_loading_what_does_not_fit() -> None:
    trainer = Trainer(seed=0)
    trainer.sparsifier.initialize()

    missing = trainer.sparsifier.state_dict()
    del missing["masks"]["0.weight"]
    reshaped = trainer.sparsifier.state_dict()
    reshaped["masks"]["0.weight"] = reshaped["masks"]["0.weight"].t()
    for state in (missing, reshaped):
        with pytest.raises(ValueError, match="layers or shapes differ"):
            trainer.sparsifier.load_state_dict(state)

    other = trainer.sparsifier.state_dict()
    other["structure"] = repr(Structure(group=4))
    with pytest.raises(ValueError, match=r"a method with Structure\(.*group=4\), and this one .*'layer'"):
        trainer.sparsifier.load_state_dict(other)

    miscounted = trainer.sparsifier.state_dict()
    miscounted["targets"]["0.weight"] -= 1
    active = trainer.sparsifier.topology.nnz("0.weight")
    with pytest.raises(ValueError, match=rf"'0\.weight': {active} active, but its target is {active - 1}"):
        trainer.sparsifier.load_state_dict(miscounted)
