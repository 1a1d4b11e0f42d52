"""Other options for an optimizer that has taken steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distsparse import optim


def started(params: dict[str, Any], schedule: str = "cosine", steps: int = 5) -> tuple[Any, Any]:
    """Return an optimizer and its schedule after some steps of ten."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.build_optimizer("sgd", [weight], params)
    rates = optim.build_schedule(schedule, optimizer, 10, {}, steps_per_epoch=5)
    for _ in range(steps):
        weight.grad = torch.ones(3)
        optimizer.step()
        rates.step()
    return optimizer, rates


def test_state_stays_and_options_change() -> None:
    old, old_schedule = started({"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
    new, new_schedule = started({"lr": 0.4, "momentum": 0.5, "weight_decay": 0.02}, steps=0)
    options = optim.Options.of(new, new_schedule)
    new.load_state_dict(old.state_dict())
    new_schedule.load_state_dict(old_schedule.state_dict())
    optim.change(new, new_schedule, options, set())
    assert new.param_groups[0]["momentum"] == 0.9
    assert new.param_groups[0]["lr"] == old.param_groups[0]["lr"] == pytest.approx(0.05)
    optim.change(new, new_schedule, options, {"lr", "momentum"})
    group = new.param_groups[0]
    # Half of a cosine is over, so the rate is half of the new base; what was not named is the state's.
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (pytest.approx(0.2), 0.5, 0.01)
    buffers = [next(iter(o.state.values()))["momentum_buffer"] for o in (old, new)]
    assert torch.equal(*buffers)
    new_schedule.step()
    assert group["lr"] == pytest.approx(0.4 / 2 * (1 + torch.cos(torch.tensor(0.6 * torch.pi)).item()))


def test_what_cannot_change() -> None:
    optimizer, schedule = started({})
    options = optim.Options.of(optimizer, schedule)
    with pytest.raises(ValueError, match=r"optimizer\.rho: is no option"):
        optim.change(optimizer, schedule, options, {"rho"})
    torch_schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    with pytest.raises(ValueError, match=r"optimizer\.lr: cannot change .* allowed: constant, cosine"):
        optim.change(optimizer, torch_schedule, options, {"lr"})
