"""Weights & Biases: a group for each study, a run for each trial."""

from __future__ import annotations

import os
from collections.abc import Sequence

import wandb

from distsparse.loggers.records import Identity, Outcome, Record

WAIT_S = 50
"""seconds that W&B tries to begin, and at the end to send what is left; the files stay, for `wandb sync`"""


class WeightsAndBiases:
    """A trial's run."""

    def __init__(self, run: wandb.Run) -> None:
        self._run = run
        # W&B counts records, and takes no earlier one again; the plots are over optimizer steps.
        self.num_records = run.starting_step
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def log(self, records: Sequence[Record]) -> None:
        """Log values."""
        for step, values in records:
            self._run.log({**values, "step": step}, step=self.num_records)
            self.num_records += 1

    def end(self, outcome: Outcome) -> None:
        """Put the outcome into the run's summary."""
        summary = {f"final/{name}": value for name, value in outcome.final.items()}
        self._run.summary.update({**summary, "status": outcome.status, "error": outcome.error})
        self._run.finish(exit_code=0 if outcome.is_good else 1)


def open_run(identity: Identity, *, resumed: bool) -> WeightsAndBiases:
    """Return the trial's run.

    Raises:
        PermissionError: there is no API key.
        wandb.Error: the server does not answer, or refuses.
    """
    config = identity.config
    settings = config.loggers
    # A machine without a network says so in WANDB_MODE.
    online = settings.wandb == "online" and os.environ.get("WANDB_MODE", "online") == "online"
    # W&B itself would ask for the key on the terminal, and wait.
    if online and not wandb.login(prompt=False):
        raise PermissionError("no API key: set WANDB_API_KEY, or run `wandb login`")
    identity.folder.mkdir(parents=True, exist_ok=True)
    return WeightsAndBiases(
        wandb.init(
            project=settings.wandb_project or os.environ.get("WANDB_PROJECT", "distsparse"),
            group=config.study,
            id=identity.id,
            name=config.key,
            tags=[*identity.labels.values(), *settings.tags],
            config={**config.to_dict(), "trial": config.key},
            dir=identity.folder,
            mode=None if settings.wandb == "online" else "offline",
            resume="allow" if resumed else None,
            # Trials of a process may overlap; console output is the command's.
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=WAIT_S,
                finish_timeout=WAIT_S,
                finish_timeout_raises=True,
            ),
        )
    )
