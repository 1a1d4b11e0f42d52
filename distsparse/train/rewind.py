"""Rounds of training: prune the trained network, go back to earlier weights, train again.

Frankle and Carbin 2019, arXiv:1803.03635 (rewinding to the initialization); Frankle et al. 2020,
arXiv:1912.05671 (to the weights of an early step k).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from distsparse.core import Method, Rewired, Sparsifier
from distsparse.dist import layout


@dataclass(frozen=True)
class Plan:
    """How the optimizer steps of a run fall into rounds and epochs.

    The first round has all its steps; each later one begins where the weights are rewound to.
    """

    steps_per_epoch: int
    steps_per_round: int
    rounds: int = 1
    rewind_step: int = 0

    @classmethod
    def of(cls, method: Method, *, steps_per_epoch: int, epochs: int) -> Plan:
        """Return the plan of a method's run; ``epochs`` are those of a round."""
        steps = steps_per_epoch * epochs
        # A tolerance, since 0.57 · 100 is 56.99… in binary.
        return cls(steps_per_epoch, steps, method.rounds, int(method.rewind_to * steps + 1e-6))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all rounds."""
        return self.steps_per_round + (self.rounds - 1) * (self.steps_per_round - self.rewind_step)

    @property
    def num_epochs(self) -> int:
        """Whole epochs of all rounds."""
        return self.total_steps // self.steps_per_epoch

    def at(self, step: int) -> tuple[int, int]:
        """Return (round, step of the round) of a step, all counted from 0."""
        if step < self.steps_per_round:
            return 0, step
        later, within = divmod(step - self.steps_per_round, self.steps_per_round - self.rewind_step)
        return 1 + later, within + self.rewind_step

    def epoch(self, step: int) -> tuple[int, int]:
        """Return (epoch, step of the epoch) of a step; every round has epochs of its own."""
        round_, within = self.at(step)
        epoch, position = divmod(within, self.steps_per_epoch)
        return round_ * (self.steps_per_round // self.steps_per_epoch) + epoch, position

    def ends_round(self, done: int) -> bool:
        """Tell whether a round ends with the first ``done`` steps."""
        return self.at(done - 1)[1] + 1 == self.steps_per_round


class Rewinder:
    """Takes a network through the rounds of its method, in the loop here or in anyone's own.

    ::

        rewinder = Rewinder(sparsifier, model, schedule, plan, fresh=lambda: Net().state_dict())
        rewinder.step(0)
        for step in range(plan.total_steps):
            ...                      # backward, sparsifier.step(), optimizer.step(), schedule.step()
            rewinder.step(step + 1)  # prunes and rewinds after the last step of a round
    """

    def __init__(
        self,
        sparsifier: Sparsifier,
        model: nn.Module,
        schedule: LRScheduler,
        plan: Plan,
        *,
        fresh: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        """Prepare.

        Args:
            sparsifier: initialized, with a method of ``plan.rounds`` rounds.
            model: bare, not wrapped by DDP.
            schedule: of the learning rate in one round; each round after the first restarts it at the step
                that the weights go back to.
            plan: see :class:`Plan`.
            fresh: returns the state dict of another initialization, for methods that ask for one.
        """
        self._sparsifier = sparsifier
        self._model = model
        self._schedule = schedule
        self._plan = plan
        self._fresh = fresh
        self._saved: dict[str, Any] = {}

    def step(self, done: int) -> Rewired | None:
        """Remember the weights to go back to, or begin the next round, where ``done`` steps ask for it.

        All ranks must call it. Returns what a prune between two rounds changed.
        """
        plan = self._plan
        if plan.rounds == 1:
            return None
        if done == plan.rewind_step:
            self._saved = {
                "network": {name: value.clone() for name, value in self._model.state_dict().items()},
                "schedule": self._schedule.state_dict(),
            }
        if done in (0, plan.total_steps) or not plan.ends_round(done):
            return None
        last = plan.at(done)[0] == plan.rounds - 1
        anew = last and self._sparsifier.method.reinitialize
        event = self._sparsifier.next_round(self._fresh() if anew else self._saved["network"])
        self._schedule.load_state_dict(self._saved["schedule"])
        return event

    def state_dict(self) -> dict[str, Any]:
        """Return what was remembered."""
        return dict(self._saved)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._saved = dict(state)
        if "network" in state:
            self._saved["network"] = layout.placed(state["network"], self._model.state_dict())
