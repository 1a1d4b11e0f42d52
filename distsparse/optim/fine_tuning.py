"""A schedule for fine-tuning: warm-up and decay by formula, a reduction and an end by a metric's plateau."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distsparse.optim.learning_rate import ClosedFormLR, MinLR, Rate, check_total_steps, half_cosine
from distsparse.optim.registry import schedules

Mode = Literal["max", "min"]
Metric = Literal["validation_accuracy", "validation_loss", "train_loss"]
MODES: Mapping[Metric, Mode] = MappingProxyType(
    {"validation_accuracy": "max", "validation_loss": "min", "train_loss": "min"}
)

InitialLR = Annotated[
    float | None, Field(gt=0, description="learning rate where the decay begins; null: optimizer.lr")
]
Decay = Annotated[Literal["cosine", "exponential"], Field(description="curve from initial_lr to min_lr")]
WarmupEpochs = Annotated[
    float, Field(ge=0, description="epochs, from start on, in which the rate rises to initial_lr")
]
Start = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="fraction of the run before which the rate is optimizer.lr, and no metric counts",
    ),
]
Factor = Annotated[
    float, Field(gt=0, lt=1, description="factor of the rate after patience epochs without improvement")
]
Patience = Annotated[
    int | None,
    Field(
        gt=0,
        description="epochs without improvement until the rate falls by factor; after twice as many the run "
        "ends; null: neither",
    ),
]
Monitor = Annotated[
    Literal["auto", "validation_accuracy", "validation_loss", "train_loss"],
    Field(
        description="what is to improve; auto: validation_accuracy, or train_loss where the data has no "
        "validation split"
    ),
]


@dataclass(frozen=True)
class Statistics:
    """What a schedule has observed."""

    best: float | None
    """best metric; None before the first observation that counts"""
    best_epoch: float | None
    """epochs of the run at the best metric"""
    epochs_without_improvement: float
    num_reductions: int
    stopped: bool
    """whether it asked to stop"""


@dataclass(frozen=True)
class Rules:
    """What a :class:`FineTuningLR` goes by; steps are optimizer steps of the run."""

    steps_per_epoch: int
    start_step: int
    """first step that the schedule acts in"""
    warm_step: int
    """first step after the warm-up"""
    min_lr: float
    factor: float
    patience: int | None
    """in epochs"""
    monitor: Monitor


@dataclass(frozen=True)
class _Watch:
    """What was observed so far, in steps."""

    best: float | None = None
    best_step: int | None = None
    since: int | None = None
    """step of the best metric; of the first one while none was a number"""
    waited: int = 0
    reduced: bool = False
    """whether the rate fell since the best metric"""
    num_reductions: int = 0
    stopped: bool = False


class FineTuningLR(ClosedFormLR):
    """A formula of the step, times ``factor`` for every time that patience ran out, and never below min_lr.

    Step it once after every optimizer step, and hand :meth:`observe` a metric after every epoch, or every
    few. State and loading are ``ClosedFormLR``'s: plain JSON, in any order.
    """

    def __init__(self, optimizer: Optimizer, rate: Rate, rules: Rules) -> None:
        self.rules = rules
        self._watch = _Watch()
        super().__init__(optimizer, rate)

    def observe(self, metric: float, *, mode: Mode = "max") -> bool:
        """Count epochs without improvement; return whether training should go on.

        Improvement is a metric strictly better than every one before; one that is not a number is none.
        Patience counts from the best metric, and not before the warm-up's end. After ``patience`` epochs the
        rate falls by ``factor`` at once; it does so once for each best metric. After ``2 · patience`` the
        answer is False, for good, without another reduction. Before ``start`` nothing is counted.

        Args:
            metric: equal on all ranks, or they would train with different rates.
            mode: whether the ``max`` or the ``min`` is best; the same in every call.

        Raises:
            ValueError: an unknown mode.
        """
        if mode not in ("max", "min"):
            raise ValueError(f"mode = {mode!r}: must be 'max' or 'min'")
        if self.last_epoch < self.rules.start_step or self._watch.stopped:
            return not self._watch.stopped
        before = self._watch.num_reductions
        self._watch = _after(self._watch, metric, self.last_epoch, mode=mode, rules=self.rules)
        if self._watch.num_reductions > before:
            self._set_rates()
        return not self._watch.stopped

    @property
    def statistics(self) -> Statistics:
        """Best metric, when it was, and what its plateaus did."""
        watch, per_epoch = self._watch, self.rules.steps_per_epoch
        return Statistics(
            best=watch.best,
            best_epoch=None if watch.best_step is None else watch.best_step / per_epoch,
            epochs_without_improvement=watch.waited / per_epoch,
            num_reductions=watch.num_reductions,
            stopped=watch.stopped,
        )

    def get_lr(self) -> list[float | Tensor]:
        """Return each group's learning rate at the present step."""
        rates = [self._rate(self.last_epoch, float(base)) for base in self.base_lrs]
        if self.last_epoch < self.rules.start_step:
            return list(rates)
        share = self.rules.factor**self._watch.num_reductions
        return [max(self.rules.min_lr, rate * share) for rate in rates]

    def state_dict(self) -> dict[str, Any]:
        """Return the step, the base learning rates and what was observed."""
        return {**super().state_dict(), **asdict(self._watch)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, with the learning rates that belong to it.

        Raises:
            ValueError: the state is of another number of parameter groups.
        """
        self._watch = _Watch(**{name: state_dict[name] for name in asdict(_Watch())})
        super().load_state_dict(state_dict)


def _after(watch: _Watch, metric: float, step: int, *, mode: Mode, rules: Rules) -> _Watch:
    """Return what is known after another metric."""
    if not math.isnan(metric) and (watch.best is None or _is_better(metric, watch.best, mode)):
        return replace(watch, best=metric, best_step=step, since=step, waited=0, reduced=False)
    since = step if watch.since is None else watch.since
    watch = replace(watch, since=since, waited=step - since)
    if rules.patience is None:
        return watch
    patience = rules.patience * rules.steps_per_epoch
    waited = step - max(since, rules.warm_step)
    if waited >= 2 * patience:
        return replace(watch, stopped=True)
    if waited >= patience and not watch.reduced:
        return replace(watch, reduced=True, num_reductions=watch.num_reductions + 1)
    return watch


def _is_better(metric: float, best: float, mode: Mode) -> bool:
    return metric > best if mode == "max" else metric < best


def monitored(monitor: Monitor, *, has_validation: bool) -> Metric:
    """Return the metric that a schedule watches; never one of the test split.

    Raises:
        ValueError: it is the validation split's, and there is none.
    """
    if monitor == "auto":
        return "validation_accuracy" if has_validation else "train_loss"
    if monitor != "train_loss" and not has_validation:
        raise ValueError(
            f"lr_schedule.monitor = {monitor!r}: the data has no validation split; "
            "set one aside (data.validation), or use train_loss or auto"
        )
    return monitor


@schedules.register("fine_tuning")
def fine_tuning(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    *,
    initial_lr: InitialLR = None,
    min_lr: MinLR = 1e-5,
    decay: Decay = "cosine",
    warmup_epochs: WarmupEpochs = 0.0,
    start: Start = 0.0,
    factor: Factor = 0.5,
    patience: Patience = 5,
    monitor: Monitor = "auto",
) -> LRScheduler:
    """Warm up, fall from ``initial_lr`` to ``min_lr``; on a plateau of the metric reduce, then end the run.

    The warm-up's w steps rise as initial_lr · (k + 1) / (w + 1), k counted from ``start``; the decay covers
    the rest of the run. See :meth:`FineTuningLR.observe` for the plateaus; in a run, they count from the
    later of ``start`` and the last mask update, so that no run ends on masks that were still to change.

    Raises:
        ValueError: ``min_lr`` above a group's first rate, 0 where the decay is exponential, or a warm-up that
            leaves no step of the run.
    """
    check_total_steps(total_steps)
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch = {steps_per_epoch}: must be at least 1")
    _check_rates(optimizer, initial_lr, min_lr, decay)
    first = round(start * total_steps)
    warm = first + round(warmup_epochs * steps_per_epoch)
    if warm >= total_steps:
        raise ValueError(
            f"lr_schedule.warmup_epochs = {warmup_epochs:g}: must be less than the "
            f"{(total_steps - first) / steps_per_epoch:g} epochs of the run after lr_schedule.start"
        )

    def rate(step: int, base: float) -> float:
        if step < first:
            return base
        peak = base if initial_lr is None else initial_lr
        if step < warm:
            return peak * (step - first + 1) / (warm - first + 1)
        progress = min((step - warm) / (total_steps - warm), 1.0)
        if decay == "cosine":
            return half_cosine(peak, min_lr, progress)
        return peak * float((min_lr / peak) ** progress)

    rules = Rules(
        steps_per_epoch=steps_per_epoch,
        start_step=first,
        warm_step=warm,
        min_lr=min_lr,
        factor=factor,
        patience=patience,
        monitor=monitor,
    )
    return FineTuningLR(optimizer, rate, rules)


def _check_rates(optimizer: Optimizer, initial_lr: float | None, min_lr: float, decay: Decay) -> None:
    base = min(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)
    name, lowest = ("optimizer.lr", base) if initial_lr is None else ("lr_schedule.initial_lr", initial_lr)
    if min_lr > lowest:
        raise ValueError(f"lr_schedule.min_lr = {min_lr}: must be at most {name} = {lowest}")
    if decay == "exponential" and min_lr == 0:
        raise ValueError("lr_schedule.min_lr = 0: must be greater than 0 where the decay is exponential")
