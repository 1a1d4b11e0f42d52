"""The registries of optimizers and learning-rate schedules, and building either from name and keywords."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distsparse.registry import Registry

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]]

optimizers: Registry[Optimizer] = Registry("optimizer")
schedules: Registry[LRScheduler] = Registry("lr_schedule")


def build_optimizer(name: str, params: Params, config: Mapping[str, Any]) -> Optimizer:
    """Return a new optimizer of ``params``: tensors, or groups as every ``torch.optim`` optimizer takes them.

    Raises:
        ValueError: unknown optimizer or keyword, a value that the schema or torch refuses, or a custom
            factory whose result is no ``torch.optim.Optimizer``.
    """
    entry = optimizers.get(name)
    values = entry.parse(config, "optimizer")
    try:
        optimizer: object = entry.factory(params, **values)
    except ValueError as error:
        raise ValueError(f"optimizer {name!r}: {error}") from None
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"optimizer {name!r} returned {type(optimizer).__name__}; it must return a torch.optim.Optimizer"
        )
    return optimizer


def build_schedule(
    name: str, optimizer: Optimizer, total_steps: int, config: Mapping[str, Any], *, steps_per_epoch: int
) -> LRScheduler:
    """Return a new schedule, to be stepped once after every one of ``total_steps`` optimizer steps.

    A factory takes (optimizer, total_steps) by position, or (optimizer, total_steps, steps_per_epoch) where
    its keywords speak of epochs.

    Raises:
        ValueError: unknown schedule or keyword, a value out of range, or a custom factory whose result is no
            ``torch.optim.lr_scheduler.LRScheduler``.
    """
    entry = schedules.get(name)
    values = entry.parse(config, "lr_schedule")
    parameters = inspect.signature(entry.factory).parameters.values()
    num_positional = sum(parameter.kind is not inspect.Parameter.KEYWORD_ONLY for parameter in parameters)
    offered = (optimizer, total_steps, steps_per_epoch)
    schedule: object = entry.factory(*offered[:num_positional], **values)
    if not isinstance(schedule, LRScheduler):
        raise ValueError(
            f"lr_schedule {name!r} returned {type(schedule).__name__}; "
            f"it must return a torch.optim.lr_scheduler.LRScheduler"
        )
    return schedule
