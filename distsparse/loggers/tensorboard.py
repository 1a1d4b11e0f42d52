"""TensorBoard: a folder of event files for each trial, below the study's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

from torch.utils.tensorboard import SummaryWriter

from distsparse.loggers.records import Identity, Outcome, Record


class TensorBoard:
    """A trial's event files. What earlier processes wrote is purged: all rows are written again."""

    def __init__(self, identity: Identity, *, resumed: bool) -> None:
        self.num_records, self._last_step = 0, 0
        self._config = identity.config
        folder = identity.folder / "tensorboard" / identity.config.key
        if not resumed:  # texts cannot be purged
            shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), purge_step=0)
        text = json.dumps(identity.config.to_dict(), indent=4)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def log(self, records: Sequence[Record]) -> None:
        """Write scalars."""
        for step, values in records:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._last_step = step
        self.num_records += len(records)
        self._writer.flush()

    def end(self, outcome: Outcome) -> None:
        """Write the outcome as text, and the final values beside the configuration as hyper-parameters.

        None where another is to come: TensorBoard reads the files of one second in the order of their
        processes, and might show this one as the last.
        """
        if outcome.is_last:
            text = outcome.status if outcome.error is None else f"{outcome.status}: {outcome.error}"
            self._writer.add_text("outcome", text, self._last_step)
        if outcome.final:
            parameters = {name: value for name, value in self._config.flat().items() if value is not None}
            final = {f"final/{name}": value for name, value in outcome.final.items()}
            # "." is this folder, not one of its own within it, which would be another run.
            self._writer.add_hparams(parameters, final, run_name=".", global_step=self._last_step)
        self._writer.close()


def open_run(identity: Identity, *, resumed: bool) -> TensorBoard:
    """Return the trial's run."""
    return TensorBoard(identity, resumed=resumed)
