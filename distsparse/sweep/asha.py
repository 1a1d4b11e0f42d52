"""Trials that are behind the others end early: ASHA (Li et al. 2020, MLSys, arXiv:1810.05934)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from distsparse.config import RunConfig
from distsparse.train.build import build_method

METRICS = ("validation_accuracy", "accuracy")
FIRST_RUNG = 10
"""percent of a trial after its grace at which it is first compared with others"""


@dataclass(frozen=True)
class Asha:
    """Compare trials at a few points of their runs, and go on with the best of each.

    A sparse network starts slowly, and what its updates find shows late: a trial is first compared after its
    grace, which may last until its topology is final. Departure from the paper: the budget is not the run but
    what is left of it after the grace, in percent, so that methods with another T_end meet at equal shares.
    """

    metric: str
    """one of METRICS; higher is better"""
    grace: float | None
    """fraction of the run before which no trial ends; None: until its method's T_end"""
    reduction_factor: int
    """one of so many trials goes on from each rung to the next"""

    def scheduler(self) -> Any:
        """Return Ray Tune's scheduler; it leaves alone who arrives at the end."""
        return ASHAScheduler(
            time_attr="progress",
            metric=self.metric,
            mode="max",
            max_t=100,
            grace_period=FIRST_RUNG,
            reduction_factor=self.reduction_factor,
            stop_last_trials=False,
        )

    def progress(self, config: RunConfig, step: int, total_steps: int) -> float | None:
        """Return the percentage of what follows the grace that is done after a step; None in the grace."""
        grace = self.grace
        if grace is None:
            method = build_method(config)
            grace = method.stop_step(total_steps) / total_steps if method.update else 0.0
        done = step / total_steps
        return None if done <= grace else 100 * (done - grace) / (1 - grace)


def parse_asha(value: Any) -> Asha | None:
    """Return the rule of a space's ``asha``: ``metric``, ``grace``, ``reduction_factor``, all optional.

    Raises:
        ValueError: naming the key, the value and what is allowed.
    """
    if value is None:
        return None
    keys = ("metric", "grace", "reduction_factor")
    if not isinstance(value, Mapping) or not set(value) <= set(keys):
        raise ValueError(f"asha = {value!r}: must be a mapping with {', '.join(keys)}")
    metric = value.get("metric", METRICS[0])
    if metric not in METRICS:
        raise ValueError(f"asha.metric = {metric!r}: allowed: {', '.join(METRICS)}")
    grace = value.get("grace", "T_end")
    if grace != "T_end" and (
        not isinstance(grace, (int, float)) or isinstance(grace, bool) or not 0 <= grace < 1
    ):
        raise ValueError(f"asha.grace = {grace!r}: must be T_end, or a fraction of the run in [0, 1)")
    factor = value.get("reduction_factor", 3)
    if not isinstance(factor, int) or isinstance(factor, bool) or factor < 2:
        raise ValueError(f"asha.reduction_factor = {factor!r}: must be a whole number of at least 2")
    return Asha(metric, None if grace == "T_end" else float(grace), factor)
