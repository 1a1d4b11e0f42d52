"""Schedules: functions of progress in [0, 1]; progress outside is clamped.

The same shapes serve the drop fraction α(t) (falling) and the target sparsity s(t) (rising).
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]
PhaseSchedule = Callable[[int], float]
"""number of a phase, from 0 → value"""


def _clamp(progress: float) -> float:
    return min(max(progress, 0.0), 1.0)


def constant(value: float) -> Schedule:
    """Return ``value`` at all times."""
    return lambda progress: value


def cosine(alpha: float) -> Schedule:
    """Fall from ``alpha`` to 0 as α/2 · (1 + cos(π p)).

    RigL, Evci et al. 2020, arXiv:1911.11134, section 3.
    """
    return lambda progress: alpha / 2 * (1 + math.cos(math.pi * _clamp(progress)))


def linear(start: float, stop: float = 0.0) -> Schedule:
    """Go from ``start`` to ``stop`` in a straight line."""
    return lambda progress: start + (stop - start) * _clamp(progress)


def inverse_power(alpha: float, power: float = 3.0) -> Schedule:
    """Fall from ``alpha`` to 0 as α · (1 - p)^power (RigL, appendix G)."""
    return lambda progress: alpha * (1 - _clamp(progress)) ** power


def cubic(final: float, initial: float = 0.0) -> Schedule:
    """Rise from ``initial`` to ``final`` sparsity as s_f + (s_i - s_f)(1 - p)³.

    Zhu and Gupta 2017, arXiv:1710.01878, equation 1. It is a schedule of *sparsity*, not of density.
    """
    return lambda progress: final + (initial - final) * (1 - _clamp(progress)) ** 3


def alternating(sparsity: float) -> PhaseSchedule:
    """Return ``sparsity`` in phases 0, 2, 4, … and 0 in between: compressed, decompressed, compressed, …

    AC/DC, Peste et al. 2021, arXiv:2106.12379, section 3.
    """
    return lambda phase: 0.0 if phase % 2 else sparsity
