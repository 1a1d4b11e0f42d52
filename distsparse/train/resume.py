"""Continue a run from its newest checkpoint that every rank can read."""

from __future__ import annotations

from pathlib import Path

import torch

from distsparse.dist import any_rank
from distsparse.train import checkpoint
from distsparse.train.history import History, LossWindow
from distsparse.train.reporter import Reporter
from distsparse.train.setup import Run


def resume(
    run: Run, reporter: Reporter, history: History, window: LossWindow
) -> tuple[int | None, list[str]]:
    """Restore the newest readable checkpoint; all ranks must call it, and take the same one.

    Returns:
        Steps done, or None where there is no checkpoint, and lines that tell the user what happened.

    Raises:
        ValueError: there are checkpoints, of which none can be read; or it is of another model.
    """
    lines: list[str] = []
    for saved in reporter.checkpoints():
        with saved as folder:
            problem = checkpoint.problem(Path(folder))
            device = run.accelerator.device
            if any_rank(run.comm, torch.tensor(problem is not None, device=device)):
                lines.append(problem or f"checkpoint {folder} cannot be read by another worker")
                continue
            done = _restore(run, Path(folder), history, window)
            if lines:
                lines[-1] += "; using the one before it"
            return done, [*lines, f"resumed at step {done} of {run.plan.total_steps}"]
    if lines:
        raise ValueError(lines[0])
    return None, []


def _restore(run: Run, folder: Path, history: History, window: LossWindow) -> int:
    """Continue from a checkpoint; return the number of steps done."""
    state = run.restore(folder)
    history.restore(state["history"])
    window.load_state_dict(state["window"])
    return int(state["step"])
