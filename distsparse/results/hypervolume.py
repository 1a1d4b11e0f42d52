"""How good a front is as a whole, and its knee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distsparse.results.pareto import check_objectives, front_mask, has_values, pareto_front


def hypervolume(
    frame: pd.DataFrame,
    *,
    reference: Mapping[str, float],
    maximize: Sequence[str] = (),
    minimize: Sequence[str] = (),
) -> float:
    """Return the volume that the rows dominate, down to a reference point, in the product of the units.

    Rows without a value for an objective, and rows that are not better than the reference in every one,
    contribute nothing. Volumes can be compared only for one reference. The cost grows with the front's size n
    as n² log n for three objectives, by n for each further one. (Zitzler and Thiele, Multiobjective
    Evolutionary Algorithms, 1999.)

    Raises:
        ValueError: as :func:`.pareto_front`; or ``reference`` does not give one value to each objective.
    """
    objectives = [*maximize, *minimize]
    check_objectives(frame, objectives)
    if set(reference) != set(objectives):
        raise ValueError(f"reference = {dict(reference)}: needs a value for each of {', '.join(objectives)}")
    signs = np.array([-1.0] * len(maximize) + [1.0] * len(minimize))
    worst = signs * [reference[name] for name in objectives]
    costs = signs * frame.loc[has_values(frame, objectives), objectives].to_numpy(dtype=np.float64)
    return _volume(costs[(costs < worst).all(axis=1)], worst)


def worst_values(
    frame: pd.DataFrame, *, maximize: Sequence[str] = (), minimize: Sequence[str] = ()
) -> dict[str, float]:
    """Return the worst value of each objective in a frame: a reference point when nothing else gives one."""
    lowest = {name: float(frame[name].min()) for name in maximize}
    return lowest | {name: float(frame[name].max()) for name in minimize}


def knee_point(
    frame: pd.DataFrame, *, maximize: Sequence[str] = (), minimize: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the front's knee as a frame of one row; of no row if the front is empty.

    It is the point of the front with the smallest sum of costs, each scaled to [0, 1] over the front. For two
    objectives that is the point farthest below the line through the front's two ends. The first of equals.
    (Das, On characterizing the "knee" of the Pareto curve, 1999.)

    Raises:
        ValueError: as :func:`.pareto_front`.
    """
    front = pareto_front(frame, maximize=maximize, minimize=minimize)
    if front.empty:
        return front
    signs = np.array([-1.0] * len(maximize) + [1.0] * len(minimize))
    costs = signs * front[[*maximize, *minimize]].to_numpy(dtype=np.float64)
    low, high = costs.min(axis=0), costs.max(axis=0)
    scaled = (costs - low) / np.where(high > low, high - low, 1.0)
    place = int(scaled.sum(axis=1).round(12).argmin())
    return front.iloc[place : place + 1]


def _volume(costs: NDArray[np.float64], worst: NDArray[np.float64]) -> float:
    """Return the volume between points (smaller is better) and ``worst``, by slices along the last axis."""
    if not len(costs):
        return 0.0
    if costs.shape[1] == 1:
        return float(worst[0] - costs.min())
    costs = np.unique(costs[front_mask(costs.T, [1] * costs.shape[1])], axis=0)
    if costs.shape[1] == 2:  # sorted by the first, so the second falls
        upper = np.append(worst[1], costs[:-1, 1])
        return float(((worst[0] - costs[:, 0]) * (upper - costs[:, 1])).sum())
    costs = costs[np.argsort(costs[:, -1], kind="stable")]
    thickness = np.diff(costs[:, -1], append=worst[-1])
    return sum(
        float(thick) * _volume(costs[: place + 1, :-1], worst[:-1])
        for place, thick in enumerate(thickness)
        if thick > 0
    )
