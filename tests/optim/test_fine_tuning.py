"""Warm-up, decay, plateaus and the end, alone with a torch optimizer; numbers by hand."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from distsparse.optim import FineTuningLR, build_schedule, fine_tuning, monitored

NAN = math.nan


def optimizer_of(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates], lr=1.0)


def schedule_of(total_steps: int, *, lr: float = 0.8, per_epoch: int = 1, **config: Any) -> FineTuningLR:
    schedule = fine_tuning(optimizer_of(lr), total_steps, per_epoch, **{"min_lr": 0.0, **config})
    assert isinstance(schedule, FineTuningLR)
    return schedule


def rate(schedule: FineTuningLR) -> float:
    (lr,) = (float(group["lr"]) for group in schedule.optimizer.param_groups)
    assert schedule.get_last_lr() == [lr]
    return lr


def advance(schedule: FineTuningLR, steps: int = 1) -> list[float]:
    """Take steps; return the rates that they were taken with."""
    rates = []
    for _ in range(steps):
        rates.append(rate(schedule))
        schedule.optimizer.step()
        schedule.step()
    return rates


def answers(schedule: FineTuningLR, metrics: list[float], mode: Any = "max", *, steps: int = 1) -> list[bool]:
    """Train an epoch of ``steps`` before each metric; return what each observation answers."""
    found = []
    for metric in metrics:
        advance(schedule, steps)
        found.append(schedule.observe(metric, mode=mode))
    return found


def test_cosine_by_hand() -> None:
    expected = [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.4 * (1 - math.sqrt(0.5)), 0.0, 0.0]
    assert advance(schedule_of(4), 6) == pytest.approx(expected, abs=1e-15)


def test_exponential_by_hand() -> None:
    schedule = schedule_of(4, decay="exponential", min_lr=0.05)
    assert advance(schedule, 6) == pytest.approx([0.8, 0.4, 0.2, 0.1, 0.05, 0.05])


def test_warmup_and_initial_lr_after_start_by_hand() -> None:
    """10 steps of 2 epochs: the base rate up to step 4, one epoch of 2 steps rises, 4 steps fall."""
    schedule = schedule_of(
        10,
        lr=1.0,
        per_epoch=2,
        start=0.4,
        warmup_epochs=1,
        initial_lr=0.3,
        decay="exponential",
        min_lr=0.3 / 16,
    )
    expected = [1.0] * 4 + [0.1, 0.2] + [0.3, 0.15, 0.075, 0.0375, 0.3 / 16]
    assert advance(schedule, 11) == pytest.approx(expected)


def test_half_an_epoch_of_warmup() -> None:
    schedule = schedule_of(40, per_epoch=4, warmup_epochs=0.5, lr=0.9)
    assert advance(schedule, 3) == pytest.approx([0.3, 0.6, 0.9])


def test_initial_lr_is_of_every_group_and_null_is_each_groups_own() -> None:
    own = fine_tuning(optimizer_of(0.8, 0.2), 8, 1)
    same = fine_tuning(optimizer_of(0.8, 0.2), 8, 1, initial_lr=0.5)
    assert own.get_last_lr() == [0.8, 0.2]
    assert same.get_last_lr() == [0.5, 0.5]


def test_a_plateau_reduces_once_and_twice_as_long_ends() -> None:
    """Patience 2: best at epoch 1, reduced at 3, not again at 4, stop at 5 = 1 + 2 · 2."""
    schedule = schedule_of(100, factor=0.1, patience=2)
    formula = advance(schedule_of(100, patience=None), 8)
    assert answers(schedule, [0.9, 0.8]) == [True, True]
    assert rate(schedule) == formula[2]
    assert schedule.statistics.num_reductions == 0
    assert answers(schedule, [0.9]) == [True]  # equal is no improvement
    assert rate(schedule) == pytest.approx(0.1 * formula[3], rel=1e-12)  # at once
    assert answers(schedule, [0.7, 0.6]) == [True, False]
    assert rate(schedule) == pytest.approx(0.1 * formula[5], rel=1e-12)  # no second reduction
    statistics = schedule.statistics
    assert (statistics.best, statistics.best_epoch) == (0.9, 1)
    assert (statistics.epochs_without_improvement, statistics.num_reductions) == (4, 1)
    assert statistics.stopped
    assert answers(schedule, [1.0]) == [False]  # for good
    assert schedule.statistics == statistics


def test_each_best_metric_has_its_own_reduction() -> None:
    schedule = schedule_of(100, factor=0.5, patience=2)
    # best at 1, reduced at 3, best at 4, reduced at 6, best at 7, reduced at 9, the end at 11
    found = answers(schedule, [1, 0, 0, 2, 0, 0, 3, 0, 0, 0, 0])
    assert found == [True] * 10 + [False]
    assert schedule.statistics.num_reductions == 3
    formula = advance(schedule_of(100, patience=None), 12)
    assert rate(schedule) == pytest.approx(0.125 * formula[11], rel=1e-12)


def test_min_lr_is_the_floor_of_reductions() -> None:
    schedule = schedule_of(100, min_lr=0.3, factor=0.5, patience=1)
    answers(schedule, [1, 0])
    assert rate(schedule) == pytest.approx(0.5 * (0.3 + 0.25 * (1 + math.cos(math.pi * 0.02))))
    answers(schedule, [2, 0])
    assert schedule.statistics.num_reductions == 2
    assert rate(schedule) == 0.3


def test_the_minimum_may_be_best() -> None:
    schedule = schedule_of(100, patience=1)
    assert answers(schedule, [3, 2, 1, 1], "min") == [True] * 4
    assert (schedule.statistics.best, schedule.statistics.num_reductions) == (1, 1)
    assert answers(schedule, [5], "min") == [False]


def test_patience_is_in_epochs_however_often_one_observes() -> None:
    """4 steps an epoch, patience 2, a metric every 12 steps: epoch 3 is best, at 6 reduced, at 9 over."""
    schedule = schedule_of(1000, per_epoch=4, patience=2)
    assert answers(schedule, [1, 0], steps=12) == [True, True]
    assert schedule.statistics.num_reductions == 1
    assert schedule.statistics.epochs_without_improvement == 3
    assert answers(schedule, [0], steps=12) == [False]
    # Every half epoch: from 0.5 on 2 epochs are 4 observations.
    often = schedule_of(1000, per_epoch=4, patience=2)
    assert answers(often, [1, 0, 0, 0], steps=2) == [True] * 4
    assert often.statistics.num_reductions == 0
    assert answers(often, [0, 0, 0, 0, 0], steps=2) == [True] * 4 + [False]
    assert often.statistics.num_reductions == 1
    assert often.statistics.best_epoch == 0.5


def test_nothing_counts_before_start() -> None:
    """The first half of 20 steps: the best of denser masks would never be reached again."""
    schedule = schedule_of(20, start=0.5, patience=2)
    assert answers(schedule, [9, 8, 7, 6, 5, 4, 3, 2, 1]) == [True] * 9
    assert schedule.statistics.best is None
    assert rate(schedule) == 0.8
    assert answers(schedule, [0.5, 0.4, 0.3, 0.2, 0.1]) == [True] * 4 + [False]
    assert (schedule.statistics.best, schedule.statistics.best_epoch) == (0.5, 10)


def test_patience_waits_for_the_end_of_the_warmup() -> None:
    """Warm-up to step 5: best at 1, and yet reduced at 5 + 2 and over at 5 + 4."""
    schedule = schedule_of(100, warmup_epochs=5, patience=2)
    assert answers(schedule, [1, 0, 0, 0, 0, 0]) == [True] * 6
    assert schedule.statistics.num_reductions == 0
    assert answers(schedule, [0, 0, 0]) == [True, True, False]
    assert schedule.statistics.num_reductions == 1
    assert schedule.statistics.epochs_without_improvement == 8


def test_what_is_not_a_number_never_is_best() -> None:
    schedule = schedule_of(100, patience=2)
    assert answers(schedule, [NAN, NAN, NAN]) == [True] * 3
    assert (schedule.statistics.best, schedule.statistics.num_reductions) == (None, 1)
    assert answers(schedule, [0.5, NAN, NAN, NAN, NAN]) == [True] * 4 + [False]
    assert schedule.statistics.best == 0.5


def test_without_patience_nothing_happens() -> None:
    schedule = schedule_of(100, patience=None)
    assert answers(schedule, [0.0] * 50) == [True] * 50
    assert (schedule.statistics.num_reductions, schedule.statistics.epochs_without_improvement) == (0, 49)


METRICS = [1, 0, 0, 2, NAN, 0, 1, 3, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("order", ["optimizer first", "schedule first", "optimizer before it is made"])
@pytest.mark.parametrize("at", range(0, len(METRICS), 2))
def test_resume_has_the_same_bits(at: int, order: str) -> None:
    config: dict[str, Any] = {"start": 0.03, "warmup_epochs": 1, "patience": 2, "factor": 0.3}
    whole = schedule_of(60, **config)
    expected = answers(whole, METRICS)
    assert whole.statistics.num_reductions == 2
    first = schedule_of(60, **config)
    before = answers(first, METRICS[:at])
    saved, saved_optimizer = json.loads(json.dumps(first.state_dict())), first.optimizer.state_dict()
    optimizer = optimizer_of(0.8)
    if order == "optimizer before it is made":
        optimizer.load_state_dict(saved_optimizer)
    second = fine_tuning(optimizer, 60, 1, min_lr=0.0, **config)
    assert isinstance(second, FineTuningLR)
    if order == "optimizer first":
        optimizer.load_state_dict(saved_optimizer)
    second.load_state_dict(saved)
    if order == "schedule first":
        optimizer.load_state_dict(saved_optimizer)
    assert rate(second) == rate(first)
    assert second.statistics == first.statistics
    assert before + answers(second, METRICS[at:]) == expected
    assert second.statistics == whole.statistics
    assert advance(second, 20) == advance(whole, 20)


def test_in_a_loop_of_ones_own() -> None:
    """A quadratic that stops improving: the schedule ends the loop."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.tensor([4.0]))
    schedule = fine_tuning(torch.optim.SGD([weight], lr=0.5), 1000, 10, min_lr=1e-3, patience=3)
    assert isinstance(schedule, FineTuningLR)
    for step in range(1, 1001):
        schedule.optimizer.zero_grad()
        loss = weight.square().sum().clamp(min=1e-3)
        loss.backward()
        schedule.optimizer.step()
        schedule.step()
        if step % 10 == 0 and not schedule.observe(float(loss.detach()), mode="min"):
            break
    assert step < 200
    assert schedule.statistics.best == pytest.approx(1e-3)
    assert schedule.statistics.best_epoch == (step - 60) / 10


def test_a_factory_takes_steps_per_epoch_only_if_it_wants_it() -> None:
    schedule = build_schedule("fine_tuning", optimizer_of(0.9), 100, {"warmup_epochs": 2}, steps_per_epoch=1)
    assert schedule.get_last_lr() == pytest.approx([0.3])
    schedule = build_schedule("cosine", optimizer_of(0.9), 100, {}, steps_per_epoch=1)
    assert schedule.get_last_lr() == [0.9]


@pytest.mark.parametrize(
    ("monitor", "has_validation", "expected"),
    [
        ("auto", True, "validation_accuracy"),
        ("auto", False, "train_loss"),
        ("train_loss", True, "train_loss"),
        ("validation_loss", True, "validation_loss"),
    ],
)
def test_what_is_monitored(monitor: Any, has_validation: bool, expected: str) -> None:
    assert monitored(monitor, has_validation=has_validation) == expected


@pytest.mark.parametrize("monitor", ["validation_accuracy", "validation_loss"])
def test_a_split_that_is_not_there_cannot_be_monitored(monitor: Any) -> None:
    message = f"lr_schedule.monitor = '{monitor}': the data has no validation split"
    with pytest.raises(ValueError, match=re.escape(message)):
        monitored(monitor, has_validation=False)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode = 'best': must be 'max' or 'min'"):
        schedule_of(10).observe(1.0, mode="best")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"min_lr": 1.5}, "lr_schedule.min_lr = 1.5: must be at most optimizer.lr = 0.8"),
        (
            {"min_lr": 0.5, "initial_lr": 0.4},
            "lr_schedule.min_lr = 0.5: must be at most lr_schedule.initial_lr",
        ),
        ({"min_lr": 0, "decay": "exponential"}, "lr_schedule.min_lr = 0: must be greater than 0"),
        ({"min_lr": -1}, "lr_schedule.min_lr = -1: input should be greater than or equal to 0"),
        ({"initial_lr": 0}, "lr_schedule.initial_lr = 0: input should be greater than 0"),
        ({"decay": "linear"}, "lr_schedule.decay = 'linear': input should be 'cosine' or 'exponential'"),
        ({"start": 1}, "lr_schedule.start = 1: input should be less than 1"),
        ({"factor": 1}, "lr_schedule.factor = 1: input should be less than 1"),
        ({"factor": 0}, "lr_schedule.factor = 0: input should be greater than 0"),
        ({"patience": 0}, "lr_schedule.patience = 0: input should be greater than 0"),
        ({"patience": 1.5}, "lr_schedule.patience = 1.5: input should be a valid integer"),
        ({"monitor": "accuracy"}, "lr_schedule.monitor = 'accuracy': input should be 'auto'"),
        ({"warmup_epochs": -1}, "lr_schedule.warmup_epochs = -1: input should be greater"),
        (
            {"warmup_epochs": 5, "start": 0.5},
            "lr_schedule.warmup_epochs = 5: must be less than the 5 epochs of the run after lr_schedule",
        ),
        ({"warmup": 1}, "unknown key 'lr_schedule.warmup'"),
    ],
)
def test_refuses(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        build_schedule("fine_tuning", optimizer_of(0.8), 20, config, steps_per_epoch=2)
    assert "\n" not in str(caught.value)


def test_refuses_a_run_without_steps_or_epochs() -> None:
    with pytest.raises(ValueError, match="total_steps = 0"):
        fine_tuning(optimizer_of(0.8), 0, 1)
    with pytest.raises(ValueError, match="steps_per_epoch = 0: must be at least 1"):
        fine_tuning(optimizer_of(0.8), 1, 0)
