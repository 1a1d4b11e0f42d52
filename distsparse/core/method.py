"""A method: moves, a sparsity schedule, and when they run."""

from __future__ import annotations

from dataclasses import dataclass

from distsparse.core.moves import Move
from distsparse.ops.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Method:
    """A sparse-training algorithm as a composition of moves."""

    sparsity: Schedule
    """target sparsity over progress t / T_end."""
    init: tuple[Move, ...] = ()
    """before the first step, from all weights active."""
    update: tuple[Move, ...] = ()
    """every ``every`` steps."""
    every: int = 100
    """delta_T: optimizer steps between mask updates."""
    stop: float = 0.75
    """T_end: up to 1 a fraction of the run, above 1 a number of steps."""
    gradient_window: int = 1
    """steps over which |gradient| is summed before an update."""
    skip_optimizer_step: bool = False
    """an update takes the place of the optimizer step."""

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
        return bool(self.update) and 0 < step <= self.stop_step(total_steps) and step % self.every == 0

    def update_schedule(self, total_steps: int) -> list[int]:
        """Return the steps, of 0 … total_steps - 1, at which the masks are updated."""
        return [step for step in range(total_steps) if self.is_update_step(step, total_steps)]

    def progress(self, step: int, total_steps: int) -> float:
        """Return t / T_end, at most 1."""
        return min(step / max(self.stop_step(total_steps), 1), 1.0)
