"""A method: moves, a sparsity schedule, and when they run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distsparse.core.criteria import UPDATE_SIGNALS
from distsparse.core.growth import GrowInit
from distsparse.core.moves import Move
from distsparse.core.ticket import Ticket
from distsparse.ops.schedule import PhaseSchedule, Schedule
from distsparse.ops.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Method:
    """A sparse-training algorithm as a composition of moves."""

    sparsity: Schedule
    """target sparsity over progress t / T_end."""
    init: tuple[Move, ...] = ()
    """before the first step, from all weights active."""
    update: tuple[Move, ...] = ()
    """every ``every`` steps."""
    phases: PhaseSchedule | None = None
    """sparsity of each update by its number from 0, in place of ``sparsity``; the last one has the final."""
    every: int = 100
    """delta_T: optimizer steps between mask updates."""
    start: float = 0.0
    """fraction of the run before which the masks are not updated."""
    stop: float = 0.75
    """T_end: up to 1 a fraction of the run, above 1 a number of steps."""
    structure: Structure = Structure()  # noqa: RUF009  frozen
    init_rounds: int = 1
    """rounds of the initial moves; sparsity rises with density^(k / rounds)."""
    temperature: float = 1.0
    """divides the model's outputs while the signals of the first topology are taken."""
    gradient_window: int = 1
    """steps over which |gradient| is summed before an update."""
    grow_init: GrowInit = "zeros"
    """values at which newly grown weights start."""
    skip_optimizer_step: bool = False
    """an update takes the place of the optimizer step."""
    rounds: int = 1
    """trainings of the network; with more than one, the update runs between two of them and only there."""
    rewind_to: float = 0.0
    """fraction of a round whose weights each later round starts from."""
    last_round: tuple[Move, ...] = ()
    """after the update that begins the last round."""
    reinitialize: bool = False
    """the last round starts from another initialization instead."""
    ticket: Ticket | None = None
    """another run's network, which this one starts from."""

    @property
    def update_needs(self) -> frozenset[str]:
        """Signals that the update's moves read."""
        return frozenset().union(*(move.needs for move in self.update))

    @property
    def init_needs(self) -> frozenset[str]:
        """Signals that the initial moves read."""
        return frozenset().union(*(move.needs for move in self.init))

    def stop_step(self, total_steps: int) -> int:
        """Return T_end in steps of a run.

        Raises:
            ValueError: T_end lies past the run.
        """
        if self.stop <= 1:
            # 0.57 · 100 is 56.99… in binary.
            return int(self.stop * total_steps + 1e-6)
        if self.stop > total_steps or self.stop != int(self.stop):
            raise ValueError(
                f"T_end = {self.stop:g}: must be a fraction of the run in (0, 1] "
                f"or a whole number of steps up to the run's {total_steps}"
            )
        return int(self.stop)

    def is_update_step(self, step: int, total_steps: int) -> bool:
        """Tell whether the masks are updated at a step: t > 0, t % delta_T == 0, t ≤ T_end."""
        return (
            bool(self.update)
            and self.rounds == 1
            and self.start_step(total_steps) <= step <= self.stop_step(total_steps)
            and step % self.every == 0
        )

    def check(self, total_steps: int) -> None:
        """Refuse a run that could not do what the method says.

        Raises:
            ValueError: T_end lies past the run, no update falls into a run whose sparsity is to change, an
                update reads what is measured before the first step only, or groups cannot be as sparse.
        """
        self.stop_step(total_steps)
        group, final = self.structure.group, self.sparsity(1.0)
        if isinstance(group, int) and (1 - final) * group < 0.5:
            raise ValueError(
                f"sparsity {final:g} with group {group}: one of every {group} stays at least, sparsity "
                f"{1 - 1 / group:g}; larger groups can be sparser"
            )
        for move in self.update:
            if missing := move.needs - UPDATE_SIGNALS:
                raise ValueError(
                    f"update: {move.name} reads {', '.join(sorted(missing))}, which only a first topology has"
                )
        if self.rounds > 1:
            return
        changes = self.sparsity(1.0) != (self.sparsity(0.0) if self.init else 0.0)
        if self.update and changes and not self.update_schedule(total_steps):
            raise ValueError(
                f"delta_T = {self.every}: no multiple of it lies between T_start, step "
                f"{self.start_step(total_steps)}, and T_end, step {self.stop_step(total_steps)} of "
                f"{total_steps}, and the sparsity {self.sparsity(1.0):g} would never be reached"
            )

    def start_step(self, total_steps: int) -> int:
        """Return the first step that may update the masks, at least 1."""
        return max(math.ceil(self.start * total_steps - 1e-6), 1)

    def update_schedule(self, total_steps: int) -> list[int]:
        """Return the steps, of 0 … total_steps - 1, at which the masks are updated."""
        return [step for step in range(total_steps) if self.is_update_step(step, total_steps)]

    def progress(self, step: int, total_steps: int) -> float:
        """Return (t - t_start) / (T_end - t_start) in [0, 1], for the drop fraction."""
        return self._between(step, total_steps, self.stop_step(total_steps))

    def sparsity_at(self, step: int, total_steps: int) -> float:
        """Return the target sparsity of an update at a step; the last update has the final one.

        An update put off by a gradient that is not finite has that of the step it was due at.
        """
        # No step follows step total_steps - 1: with T_end = 1, the schedule must be through by then.
        last = min(self.stop_step(total_steps), total_steps - 1) // self.every * self.every
        if self.phases and step < last:
            first = math.ceil(self.start_step(total_steps) / self.every)
            return self.phases(step // self.every - first)
        return self.sparsity(1.0 if step >= last else self._between(step, total_steps, last))

    def initial_sparsity(self, round_: int) -> float:
        """Return the sparsity of a round, counted from 0: 1 - density^((round + 1) / rounds)."""
        final = self.sparsity(0.0)
        if round_ + 1 == self.init_rounds:
            return final
        return 1 - float((1 - final) ** ((round_ + 1) / self.init_rounds))

    def sparsity_of_round(self, round_: int) -> float:
        """Return the sparsity of a round, counted from 0."""
        return self.sparsity(round_ / max(self.rounds - 1, 1))

    def _between(self, step: int, total_steps: int, stop: int) -> float:
        start = self.start * total_steps
        return min(max((step - start) / max(stop - start, 1), 0.0), 1.0)
