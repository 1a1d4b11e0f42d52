from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from distsparse.optim import build_schedule, schedules


def optimizer_of(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates], lr=1.0)


def rates(schedule: LRScheduler, steps: int) -> list[float]:
    """Return the first group's rate of each step, stepping once after every optimizer step."""
    values = []
    for _ in range(steps):
        values.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return values


def run(
    name: str, total_steps: int, config: dict[str, Any], lr: float = 0.8, steps: int | None = None
) -> list[float]:
    schedule = build_schedule(name, optimizer_of(lr), total_steps, config, steps_per_epoch=2)
    return rates(schedule, total_steps if steps is None else steps)


def test_constant() -> None:
    assert run("constant", 3, {}) == [0.8, 0.8, 0.8]
    assert run("constant", 8, {"warmup_fraction": 0.4}) == pytest.approx([0.2, 0.4, 0.6] + [0.8] * 5)


def test_cosine_to_zero_by_hand() -> None:
    # cos of 0, 45, 90, 135, 180 degrees
    expected = [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.4 * (1 - math.sqrt(0.5)), 0.0, 0.0]
    values = run("cosine", 4, {}, steps=6)
    assert values == pytest.approx(expected, abs=1e-15)
    assert values[4:] == [0.0, 0.0]


def test_cosine_formula_of_the_whole_run() -> None:
    expected = [0.01 + (0.1 - 0.01) / 2 * (1 + math.cos(math.pi * t / 137)) for t in range(137)]
    assert run("cosine", 137, {"min_lr": 0.01}, lr=0.1) == pytest.approx(expected, rel=1e-14)


def test_cosine_after_warmup() -> None:
    # two of six steps rise; the other four fall as the four of the test above
    values = run("cosine", 6, {"warmup_fraction": 0.34}, lr=0.9, steps=7)
    assert values[:3] == pytest.approx([0.3, 0.6, 0.9])
    assert values[4] == pytest.approx(0.45)
    assert values[6] == 0.0


def test_exponential_by_hand() -> None:
    assert run("exponential", 4, {"min_lr": 0.05}, steps=6) == pytest.approx([0.8, 0.4, 0.2, 0.1, 0.05, 0.05])
    values = run("exponential", 5, {"min_lr": 0.05, "warmup_fraction": 0.2}, steps=6)
    assert values == pytest.approx([0.4, 0.8, 0.4, 0.2, 0.1, 0.05])


def test_step_by_hand() -> None:
    config = {"milestones": [0.3, 0.7], "gamma": 0.5}
    assert run("step", 10, config) == pytest.approx([0.8] * 3 + [0.4] * 4 + [0.2] * 3)
    # 0.55 · 100 is 55.00000000000001 in floating point
    values = run("step", 100, {"milestones": [0.55]})
    assert values[54:56] == pytest.approx([0.8, 0.08])
    warm = run("step", 10, {"milestones": [0.5], "gamma": 0.5, "warmup_fraction": 0.1})
    assert warm == pytest.approx([0.4] + [0.8] * 4 + [0.4] * 5)
    assert run("step", 3, {"milestones": []}) == [0.8] * 3


@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 10, 97])
@pytest.mark.parametrize(
    "config", [{}, {"pct_start": 0.1, "div_factor": 4.0, "final_div_factor": 10.0}, {"pct_start": 0.5}]
)
def test_one_cycle_is_torchs(total_steps: int, config: dict[str, float]) -> None:
    theirs = optimizer_of(0.8)
    try:
        expected = rates(OneCycleLR(theirs, 0.8, total_steps, cycle_momentum=False, **config), total_steps)
    except ZeroDivisionError:
        pytest.skip("torch divides by zero where the rise has one step")
    assert run("one-cycle", total_steps, config) == pytest.approx(expected, rel=1e-12)


def test_one_cycle_where_the_rise_has_one_step() -> None:
    # the peak is step 0.5 · 2 - 1 = 0; step 1 is the end: 0.8 / 25 / 10000
    assert run("one-cycle", 2, {"pct_start": 0.5}) == pytest.approx([0.8, 3.2e-6])


def test_one_cycle_keeps_its_last_rate() -> None:
    assert run("one-cycle", 10, {}, steps=13)[9:] == pytest.approx([3.2e-6] * 4)


@pytest.mark.parametrize("name", schedules.names())
def test_every_keyword_is_described_and_changes_the_rates(name: str) -> None:
    other = {
        "warmup_fraction": 0.3, "min_lr": 0.05, "milestones": (0.2,), "gamma": 0.7,
        "pct_start": 0.5, "div_factor": 3.0, "final_div_factor": 7.0,
        "initial_lr": 0.4, "decay": "exponential", "warmup_epochs": 3.0, "start": 0.3,
    }  # fmt: skip
    observed = {"factor", "patience", "monitor"}  # of a metric: test_fine_tuning, and a run's in test_loop
    for key, field in schedules.get(name).schema.model_fields.items():
        assert field.description
        assert key in observed or run(name, 20, {key: other[key]}) != run(name, 20, {})


@pytest.mark.parametrize("name", schedules.names())
def test_every_group_follows_its_own_rate(name: str) -> None:
    schedule = build_schedule(name, optimizer_of(0.8, 0.08), 10, {}, steps_per_epoch=2)
    for _ in range(3):
        schedule.optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == [run(name, 10, {}, lr=lr)[3] for lr in (0.8, 0.08)]


@pytest.mark.parametrize("name", schedules.names())
@pytest.mark.parametrize("order", ["optimizer first", "schedule first", "optimizer before it is made"])
@pytest.mark.parametrize("at", [0, 1, 7, 20])
def test_resume_has_the_same_bits(name: str, order: str, at: int) -> None:
    configs = {"one-cycle": {}, "fine_tuning": {"warmup_epochs": 1.5}}
    config = configs.get(name, {"warmup_fraction": 0.15})
    uninterrupted = run(name, 20, config, lr=0.1, steps=22)
    first = build_schedule(name, optimizer_of(0.1), 20, config, steps_per_epoch=2)
    before = rates(first, at)
    saved, saved_optimizer = json.loads(json.dumps(first.state_dict())), first.optimizer.state_dict()
    optimizer = optimizer_of(0.1)
    if order == "optimizer before it is made":
        optimizer.load_state_dict(saved_optimizer)
    second = build_schedule(name, optimizer, 20, config, steps_per_epoch=2)
    if order == "optimizer first":
        optimizer.load_state_dict(saved_optimizer)
    second.load_state_dict(saved)
    if order == "schedule first":
        optimizer.load_state_dict(saved_optimizer)
    assert second.get_last_lr() == [optimizer.param_groups[0]["lr"]]
    assert before + rates(second, 22 - at) == uninterrupted


def test_a_state_brings_its_own_base_rate() -> None:
    state = build_schedule("cosine", optimizer_of(0.8), 4, {}, steps_per_epoch=2).state_dict()
    schedule = build_schedule("cosine", optimizer_of(0.1), 4, {}, steps_per_epoch=2)
    schedule.load_state_dict(state)
    assert rates(schedule, 4) == run("cosine", 4, {}, lr=0.8)


def test_a_state_of_other_groups_is_refused() -> None:
    state = build_schedule("cosine", optimizer_of(0.1, 0.2), 10, {}, steps_per_epoch=2).state_dict()
    with pytest.raises(ValueError, match="state has 2 groups, the optimizer 1"):
        build_schedule("cosine", optimizer_of(0.1), 10, {}, steps_per_epoch=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "total_steps", "config", "message"),
    [
        ("cosine", 0, {}, "total_steps = 0"),
        ("one-cycle", 0, {}, "total_steps = 0"),
        ("step", 0, {}, "total_steps = 0"),
        ("cosine", 10, {"min_lr": 1.5}, "lr_schedule.min_lr = 1.5: must be at most optimizer.lr = 0.8"),
        ("exponential", 10, {"min_lr": 0}, "lr_schedule.min_lr = 0"),
        ("cosine", 10, {"warmup_fraction": 1}, "lr_schedule.warmup_fraction = 1"),
        (
            "step",
            10,
            {"milestones": [0.7, 0.3]},
            "lr_schedule.milestones = [0.7, 0.3]: milestones must ascend",
        ),
        ("step", 10, {"milestones": [0.5, 30]}, "lr_schedule.milestones"),
        ("cosin", 10, {}, "unknown lr_schedule 'cosin' (did you mean 'cosine'?)"),
        ("constant", 10, {"gamma": 1}, "unknown key 'lr_schedule.gamma'"),
        (f"{__name__}:returns_nothing", 10, {}, "must return a torch.optim.lr_scheduler.LRScheduler"),
    ],
)
def test_refuses(name: str, total_steps: int, config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_schedule(name, optimizer_of(0.8), total_steps, config, steps_per_epoch=2)


def returns_nothing(optimizer: torch.optim.Optimizer, total_steps: int) -> None:
    """A custom factory that is wrong."""
