"""What a run's evaluations tell its learning-rate schedule, and whether the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from distsparse.optim import MODES, FineTuningLR, monitored
from distsparse.train.history import Row
from distsparse.train.setup import Run


def goes_on(run: Run, steps: Sequence[Row]) -> bool:
    """Hand an evaluation to a schedule that watches one; return whether training goes on.

    Nothing is counted while masks are still to be updated: a run never ends before its topology is final, and
    a metric of other masks is no standard. With T_end at the run's end, it so has no effect.

    Args:
        run: the run; its schedule changes.
        steps: rows of the ``steps`` table, the last one an evaluation's; equal on all ranks, and so is the
            answer.
    """
    schedule = run.schedule
    if not isinstance(schedule, FineTuningLR) or not run.sparsifier.settled:
        return True
    name = monitored(schedule.rules.monitor, has_validation=run.dataset.validation is not None)
    metric = mean_train_loss(steps) if name == "train_loss" else steps[-1][name]
    return schedule.observe(metric, mode=MODES[name])


def mean_train_loss(steps: Sequence[Row]) -> float:
    """Return the mean training loss since the evaluation before the last row, whatever is logged between."""
    evaluated = [i for i, row in enumerate(steps[:-1]) if "test_loss" in row]
    rows = steps[evaluated[-1] + 1 :] if evaluated else steps
    ends = [steps[evaluated[-1]]["step"] if evaluated else 0, *(row["step"] for row in rows)]
    weighted = [
        row["train_loss"] * (end - start) for row, (start, end) in zip(rows, pairwise(ends), strict=True)
    ]
    return float(sum(weighted) / (ends[-1] - ends[0]))


def columns(run: Run) -> Row:
    """Return what a schedule that watches the run adds to its summary."""
    if not isinstance(run.schedule, FineTuningLR):
        return {}
    statistics = run.schedule.statistics
    return {"num_lr_reductions": statistics.num_reductions, "best_monitored": statistics.best}
