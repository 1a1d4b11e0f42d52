"""MLflow: an experiment for each study, a run for each trial; by its client, which has no global state."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException

from distsparse.loggers.records import Identity, Outcome, Record

RUN, NUM_RECORDS = "distsparse.run", "distsparse.num_records"
MOST_METRICS, MOST_PARAMS = 1000, 100
"""of one request, by MLflow's rules"""


class Mlflow:
    """A trial's run."""

    def __init__(self, client: MlflowClient, run: str, num_records: int) -> None:
        self._client, self._run, self.num_records = client, run, num_records

    def log(self, records: Sequence[Record]) -> None:
        """Log values, and with them as a tag how many there are, from which another process goes on."""
        self.num_records += len(records)
        now = round(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step) for step, values in records for name, value in values.items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            is_last = start + MOST_METRICS >= len(metrics)
            tags = [RunTag(NUM_RECORDS, str(self.num_records))] if is_last else []
            self._client.log_batch(self._run, metrics=metrics[start : start + MOST_METRICS], tags=tags)

    def end(self, outcome: Outcome) -> None:
        """Log the outcome, and end the run."""
        now = round(time.time() * 1000)
        final = [Metric(f"final/{name}", value, now, 0) for name, value in outcome.final.items()]
        tags = [RunTag("status", outcome.status), RunTag("error", outcome.error or "")]
        self._client.log_batch(self._run, metrics=final, tags=tags)
        ends = {"completed": "FINISHED", "trained": "FINISHED", "failed": "FAILED"}
        self._client.set_terminated(self._run, ends.get(outcome.status, "KILLED"))


def open_run(identity: Identity, *, resumed: bool) -> Mlflow:
    """Return the trial's run.

    Raises:
        MlflowException: the server does not answer, or refuses.
    """
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it tells of each table of a new database
    config = identity.config
    # Trials write at once: sqlite's own patience of 5 s is short on a busy machine.
    default = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{identity.root / 'mlflow.db'}?timeout=60"
    uri = config.loggers.mlflow_uri or default
    with _alone(identity.root) if uri.startswith("sqlite:") else nullcontext():
        client = MlflowClient(uri)
        experiment = _experiment(client, config.study)
    found = client.search_runs([experiment], f"tags.`{RUN}` = '{identity.id}'")
    if found and resumed:
        run = found[0]
        client.update_run(run.info.run_id, RunStatus.to_string(RunStatus.RUNNING))
        return Mlflow(client, run.info.run_id, int(run.data.tags.get(NUM_RECORDS, 0)))
    for replaced in found:
        client.delete_run(replaced.info.run_id)  # until MLflow's own clean-up it can be restored
    labels = {f"distsparse.{name}": value for name, value in identity.labels.items()}
    tags = {RUN: identity.id, **labels, **dict.fromkeys(config.loggers.tags, "true")}
    run = client.create_run(experiment, run_name=config.key, tags=tags)
    params = [Param(name, str(value)) for name, value in config.flat().items()]
    for start in range(0, len(params), MOST_PARAMS):
        client.log_batch(run.info.run_id, params=params[start : start + MOST_PARAMS])
    return Mlflow(client, run.info.run_id, 0)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Let one process at a time into the block: MLflow makes tables without looking for others."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".mlflow.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _experiment(client: MlflowClient, name: str) -> str:
    """Return the experiment's id; trials that begin together may all try to make it."""
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        raise
