"""The exact Pareto front of a data frame: sorting up to three objectives, blocks of comparisons beyond."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distsparse.results.configurations import check_numeric

BLOCK = 256
FRONT_BLOCK = 4096


def pareto_front(
    frame: pd.DataFrame, *, maximize: Sequence[str] = (), minimize: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the rows that no other row dominates, in the frame's order and with its index.

    A row dominates another if it is at least as good in every objective and better in one; so equal rows stay
    together. A row without a value (NaN, NA) for an objective is never on the front. Infinities are values.
    The work is O(n log n) for up to three objectives and O(n · front) for more.

    Raises:
        ValueError: no objective, one named twice, an unknown column, or one that is not numeric.
    """
    objectives = [*maximize, *minimize]
    check_objectives(frame, objectives)
    valid = has_values(frame, objectives)
    mask = np.zeros(len(frame), dtype=bool)
    if valid.any():
        signs = [-1] * len(maximize) + [1] * len(minimize)
        mask[valid] = front_mask([frame.loc[valid, name].to_numpy() for name in objectives], signs)
    return frame.loc[mask]


def front_mask(columns: Iterable[NDArray[Any]], signs: Sequence[int]) -> NDArray[np.bool_]:
    """Return which points are on the front, from a column per objective; -1 maximizes it, 1 minimizes it."""
    # Dominance is about order only: ranks keep it exact for integers that no float holds.
    ranks = [
        sign * np.unique(column, return_inverse=True)[1] for sign, column in zip(signs, columns, strict=True)
    ]
    return undominated(np.stack(ranks, axis=1).astype(np.int64))


def check_objectives(frame: pd.DataFrame, objectives: Sequence[str]) -> None:
    """Check that objectives are distinct numeric columns of the frame.

    Raises:
        ValueError: they are not, or there is none.
    """
    if not objectives:
        raise ValueError("no objective: name a column to maximize or to minimize")
    check_numeric(frame, objectives)
    for name in objectives:
        if list(objectives).count(name) > 1:
            raise ValueError(f"objective {name!r} is named twice")


def has_values(frame: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.bool_]:
    """Return, per row, whether every one of some numeric columns has a value."""
    values = [frame[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in columns]
    return np.asarray(~np.isnan(np.stack(values, axis=1)).any(axis=1))


def undominated(costs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows of (points, objectives) no row dominates, smaller being better."""
    # Distinct and in lexicographic order: a point can only be dominated by an earlier one.
    points, inverse = np.unique(costs, axis=0, return_inverse=True)
    match points.shape[1]:
        case 1:
            kept = np.arange(len(points)) == 0
        case 2:
            kept = _front_of_two(points[:, 1])
        case 3:
            kept = _front_of_three(points[:, 1], points[:, 2])
        case _:
            kept = _front_of_many(points)
    return np.asarray(kept[inverse.reshape(-1)])


def _front_of_two(second: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Keep what is below every earlier point."""
    kept = np.ones(len(second), dtype=bool)
    kept[1:] = second[1:] < np.minimum.accumulate(second)[:-1]
    return kept


def _front_of_three(second: NDArray[np.int64], third: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Keep a point unless an earlier one is no larger in both: a Fenwick tree of minima over ``second``."""
    positions = np.unique(second, return_inverse=True)[1].reshape(-1) + 1
    size = int(positions.max())
    unreached = int(third.max()) + 1
    lowest = [unreached] * (size + 1)
    kept = np.ones(len(second), dtype=bool)
    for index, (position, value) in enumerate(zip(positions.tolist(), third.tolist(), strict=True)):
        node, best = position, unreached
        while node and best > value:
            best = min(best, lowest[node])
            node &= node - 1
        if best <= value:
            kept[index] = False
            continue
        node = position
        while node <= size:
            lowest[node] = min(lowest[node], value)
            node += node & -node
    return kept


def _front_of_many(points: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Compare blocks of points with the front so far and within the block."""
    front = np.empty((0, points.shape[1]), dtype=np.int64)
    kept = np.zeros(len(points), dtype=bool)
    for start in range(0, len(points), BLOCK):
        alive = np.arange(start, min(start + BLOCK, len(points)))
        for first in range(0, len(front), FRONT_BLOCK):
            alive = alive[~_covered(points[alive], front[first : first + FRONT_BLOCK], times=1)]
        # Every point covers itself, so within a block only a second cover dominates.
        alive = alive[~_covered(points[alive], points[alive], times=2)]
        kept[alive] = True
        front = np.concatenate([front, points[alive]])
    return kept


def _covered(points: NDArray[np.int64], others: NDArray[np.int64], *, times: int) -> NDArray[np.bool_]:
    """Return which points are no smaller, in all objectives, than ``times`` of the others."""
    covers = np.ones((len(points), len(others)), dtype=bool)
    for objective in range(points.shape[1]):
        covers &= others[None, :, objective] <= points[:, None, objective]
    return np.asarray(covers.sum(axis=1) >= times)
