"""Other options for an optimizer that has taken steps: its state stays, what is multiplied changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distsparse.optim.learning_rate import ClosedFormLR


@dataclass(frozen=True)
class Options:
    """What a configuration gives an optimizer's groups and its schedule, before any state is loaded."""

    groups: Sequence[Mapping[str, Any]]
    base_lrs: Sequence[float]

    @classmethod
    def of(cls, optimizer: Optimizer, schedule: LRScheduler) -> Options:
        """Return the present ones."""
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        return cls(groups, [float(rate) for rate in getattr(schedule, "base_lrs", ())])


def change(optimizer: Optimizer, schedule: LRScheduler, options: Options, names: Set[str]) -> None:
    """Give an optimizer the options of those names, in place of what its loaded state says.

    A new ``lr`` is the schedule's base: the rate goes on along the same curve, at another height.

    Raises:
        ValueError: no group has an option of that name, or the schedule is no formula of ``lr``.
    """
    for name in sorted(names):
        if name == "lr":
            if type(schedule) is not ClosedFormLR:
                raise ValueError(
                    "optimizer.lr: cannot change during a run with this lr_schedule, which is no formula of "
                    "the step; allowed: constant, cosine, exponential, step, one-cycle"
                )
            schedule.rebase(options.base_lrs)
            continue
        if not any(name in group for group in options.groups):
            raise ValueError(f"optimizer.{name}: is no option of the optimizer's groups, and cannot change")
        for group, given in zip(optimizer.param_groups, options.groups, strict=True):
            if name in given:
                group[name] = given[name]
