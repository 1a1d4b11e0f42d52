"""Criteria: a score for every weight of a layer; higher is kept first and grown first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from distsparse.core.signals import Signals


@dataclass(frozen=True)
class Criterion:
    """A named score and the signals that it reads ("grad", "grad_abs"; weights and random bits are free)."""

    name: str
    score: Callable[[Signals], Tensor]
    needs: frozenset[str] = frozenset()


def _gradient(signals: Signals) -> Tensor:
    assert signals.grad_abs is not None
    return signals.grad_abs


magnitude = Criterion("magnitude", lambda signals: signals.weight.abs())
"""|w|: what SET, RigL and magnitude pruning keep."""

random = Criterion("random", lambda signals: signals.random_bits())
"""Uniform among the candidates, without replacement."""

gradient = Criterion("gradient", _gradient, frozenset({"grad_abs"}))
"""|mean over the global batch of ∂L/∂w|: reduced first, then the magnitude (RigL, section 3)."""
