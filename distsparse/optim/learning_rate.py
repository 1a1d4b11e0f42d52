"""Learning-rate schedules: closed formulas of the optimizer step, so that a resumed run has the same bits.

Step t in 0 … total_steps - 1 trains with the rate of t. With warm-up, the first
w = round(warmup_fraction · total_steps) steps rise as lr · (t + 1) / (w + 1), step w has the full rate, and
the schedule proper covers w … total_steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distsparse.optim.registry import schedules

Rate = Callable[[int, float], float]  # (step, base learning rate) -> learning rate


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("milestones must ascend")
    return values


WarmupFraction = Annotated[
    float, Field(ge=0, lt=1, description="fraction of the run in which the rate rises to lr")
]
MinLR = Annotated[float, Field(ge=0, description="learning rate at the end of the run")]
PositiveMinLR = Annotated[float, Field(gt=0, description="learning rate at the end of the run")]
Gamma = Annotated[float, Field(gt=0, description="factor of the learning rate at each milestone")]
Milestone = Annotated[float, Field(gt=0, lt=1)]
Milestones = Annotated[
    tuple[Milestone, ...],
    AfterValidator(_ascending),
    Field(description="fractions of the run at which the rate falls"),
]
PctStart = Annotated[
    float, Field(gt=0, lt=1, description="fraction of the run in which the rate rises to lr")
]
DivFactor = Annotated[float, Field(gt=0, description="lr over the first learning rate")]
FinalDivFactor = Annotated[float, Field(gt=0, description="first learning rate over the last one")]


class ClosedFormLR(LRScheduler):
    """Sets each group's learning rate to a formula of the step and the group's own base rate.

    Its state is plain JSON: the step and the base rates. Loading it sets the groups' rates again, so it does
    not matter whether the optimizer's state is loaded before or after, or before this object was made.
    """

    def __init__(self, optimizer: Optimizer, rate: Rate) -> None:
        self._rate = rate
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return each group's learning rate at the present step."""
        return [self._rate(self.last_epoch, float(base)) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps taken and each group's base learning rate."""
        return {"last_epoch": self.last_epoch, "base_lrs": [float(base) for base in self.base_lrs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, with the learning rates that belong to it.

        Raises:
            ValueError: the state is of another number of parameter groups.
        """
        num_groups = len(self.optimizer.param_groups)
        if len(state_dict["base_lrs"]) != num_groups:
            raise ValueError(
                f"the schedule's state has {len(state_dict['base_lrs'])} groups, the optimizer {num_groups}"
            )
        self.base_lrs = list(state_dict["base_lrs"])
        self.last_epoch = state_dict["last_epoch"]
        # torch counts calls to warn of a schedule that runs ahead of its optimizer; these were before.
        self._step_count = state_dict["last_epoch"] + 1
        self._set_rates()

    def rebase(self, base_lrs: Sequence[float]) -> None:
        """Go on from the present step with other base rates, one for each group."""
        self.base_lrs = list(base_lrs)
        self._set_rates()

    def _set_rates(self) -> None:
        """Give the groups the rates of the present step."""
        self.last_epoch -= 1
        self._update_lr()


@schedules.register("constant")
def constant(optimizer: Optimizer, total_steps: int, *, warmup_fraction: WarmupFraction = 0.0) -> LRScheduler:
    """Keep the learning rate."""
    return _after_warmup(optimizer, total_steps, warmup_fraction, lambda progress, base: base)


@schedules.register("cosine")
def cosine(
    optimizer: Optimizer, total_steps: int, *, warmup_fraction: WarmupFraction = 0.0, min_lr: MinLR = 0.0
) -> LRScheduler:
    """Fall along half a cosine from lr to ``min_lr`` (Loshchilov & Hutter, 2017, arXiv:1608.03983, eq. 5).

    Raises:
        ValueError: ``min_lr`` is above a group's learning rate.
    """
    _check_min_lr(optimizer, min_lr)

    def rate(progress: float, base: float) -> float:
        return half_cosine(base, min_lr, progress)

    return _after_warmup(optimizer, total_steps, warmup_fraction, rate)


@schedules.register("exponential")
def exponential(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_fraction: WarmupFraction = 0.0,
    min_lr: PositiveMinLR = 1e-5,
) -> LRScheduler:
    """Fall by an equal factor at each step, from lr to ``min_lr``.

    Raises:
        ValueError: ``min_lr`` is above a group's learning rate.
    """
    _check_min_lr(optimizer, min_lr)
    return _after_warmup(
        optimizer, total_steps, warmup_fraction, lambda progress, base: base * (min_lr / base) ** progress
    )


@schedules.register("step")
def step(
    optimizer: Optimizer,
    total_steps: int,
    *,
    milestones: Milestones = (0.5, 0.75),
    gamma: Gamma = 0.1,
    warmup_fraction: WarmupFraction = 0.0,
) -> LRScheduler:
    """Multiply the learning rate by ``gamma`` at each milestone.

    A milestone is a fraction of the whole run, warm-up included: it acts from step
    ``round(milestone · total_steps)`` on. The defaults are those of ResNet on CIFAR (arXiv:1512.03385).
    """
    warmup = _num_warmup_steps(total_steps, warmup_fraction)
    steps = [round(milestone * total_steps) for milestone in milestones]

    def rate(step: int, base: float) -> float:
        if step < warmup:
            return base * (step + 1) / (warmup + 1)
        return base * gamma ** sum(step >= milestone for milestone in steps)

    return ClosedFormLR(optimizer, rate)


@schedules.register("one-cycle")
def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    *,
    pct_start: PctStart = 0.3,
    div_factor: DivFactor = 25.0,
    final_div_factor: FinalDivFactor = 1e4,
) -> LRScheduler:
    """Rise from lr / div_factor to lr and fall below where it began, each along half a cosine.

    Smith & Topin, 2018, arXiv:1708.07120. The learning rates of ``torch.optim.lr_scheduler.OneCycleLR``;
    momentum is not cycled, a departure from the paper.
    """
    check_total_steps(total_steps)
    peak = pct_start * total_steps - 1

    def rate(step: int, base: float) -> float:
        first = base / div_factor
        if step <= peak and peak > 0:
            return half_cosine(first, base, step / peak)
        return half_cosine(base, first / final_div_factor, (step - peak) / (total_steps - 1 - peak))

    return ClosedFormLR(optimizer, rate)


def half_cosine(start: float, end: float, progress: float) -> float:
    """Return ``start`` at progress 0 and ``end`` from 1 on."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _after_warmup(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float, rate: Callable[[float, float], float]
) -> LRScheduler:
    """Return warm-up, then ``rate(progress, base)`` with progress from 0 to 1 over the rest of the run."""
    warmup = _num_warmup_steps(total_steps, warmup_fraction)

    def rate_of_step(step: int, base: float) -> float:
        if step < warmup:
            return base * (step + 1) / (warmup + 1)
        return rate(min(1.0, (step - warmup) / max(1, total_steps - warmup)), base)

    return ClosedFormLR(optimizer, rate_of_step)


def _num_warmup_steps(total_steps: int, warmup_fraction: float) -> int:
    check_total_steps(total_steps)
    return round(warmup_fraction * total_steps)


def check_total_steps(total_steps: int) -> None:
    """Refuse a run of no steps.

    Raises:
        ValueError: ``total_steps`` is below 1.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps = {total_steps}: a learning-rate schedule needs at least 1")


def _check_min_lr(optimizer: Optimizer, min_lr: float) -> None:
    lowest = min(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)
    if min_lr > lowest:
        raise ValueError(f"lr_schedule.min_lr = {min_lr}: must be at most optimizer.lr = {lowest}")
