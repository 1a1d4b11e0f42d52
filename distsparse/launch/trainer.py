"""A run on Ray Train workers: data parallel, one process each."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.queue import Queue

from distsparse import config as settings
from distsparse.launch.record import (
    last_history,
    record_completed,
    record_failed,
    restored_history,
    trial_folder,
)
from distsparse.launch.worker import run_worker
from distsparse.train.build import build_method
from distsparse.train.history import History, Row
from distsparse.train.progress import Progress, describe
from distsparse.train.setup import check, make_plan


class _Forward(UserCallback):  # type: ignore[misc]  # ray is untyped
    """Send what rank 0 reports from Ray's controller process to the driver."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        self._queue.put(metrics[0])


def run_on_workers(
    config: settings.RunConfig,
    root: Path,
    *,
    verbose: bool,
    callbacks: Sequence[UserCallback] = (),
) -> Row:
    """Train on ``launch.workers`` Ray Train workers, from the trial's last checkpoint if it has one.

    ``root`` must be reachable from every node. A run that fails becomes a row with its error; one that is
    interrupted leaves its checkpoints. Returns the trial's row.
    """
    folder = trial_folder(root, config)
    with _progress(config, enabled=verbose) as forward:
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"config": config.to_dict()},
            scaling_config=ScalingConfig(
                num_workers=config.launch.workers,
                use_gpu=config.launch.gpus_per_worker > 0,
                resources_per_worker=_resources(config),
            ),
            run_config=RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                # Without a limit a group of workers that the cluster cannot hold is retried for ever.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
                checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
                logging_config=LoggingConfig(log_level="ERROR"),
                callbacks=[*forward, *callbacks],
            ),
        )
        try:
            last = trainer.fit().checkpoint
        except TrainingFailedError as error:
            return record_failed(root, config, last_history(folder), _reason(error))
    if last is None:
        return record_failed(root, config, History(), "RuntimeError: the workers left no checkpoint")
    with last.as_directory() as saved:
        row = record_completed(root, config, restored_history(Path(saved)), Path(saved))
    for other in folder.glob("checkpoint_*"):
        if other.is_dir() and other.name != Path(saved).name:  # the run is over: the last one is enough
            shutil.rmtree(other)
    return row


def _resources(config: settings.RunConfig) -> dict[str, float]:
    resources = {"CPU": config.launch.cpus_per_worker}
    if config.launch.gpus_per_worker > 0:
        resources["GPU"] = config.launch.gpus_per_worker
    return resources


@contextmanager
def _progress(config: settings.RunConfig, *, enabled: bool) -> Iterator[list[UserCallback]]:
    """Show the workers' reports in the driver; give the callbacks that send them."""
    if not enabled:
        yield []
        return
    plan = make_plan(config, check(config), build_method(config))
    queue = Queue(actor_options={"num_cpus": 0})
    progress = Progress(plan.total_steps, unit="step", enabled=True)

    def show() -> None:
        shown = 0
        while (metrics := queue.get()) is not None:
            progress.advance(metrics["step"] - shown)
            shown = metrics["step"]
            if metrics.get("steps") == shown:
                progress.line(describe(metrics, plan.num_epochs))

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield [_Forward(queue)]
        queue.put(None)
        thread.join()
    finally:
        progress.close()
        queue.shutdown(force=True)


def _reason(error: TrainingFailedError) -> str:
    """Return the first worker's own error in one line."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        first = min(error.worker_failures)
        cause = error.worker_failures[first]
        logging.getLogger(__name__).debug("workers failed", exc_info=error)
        return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1]} (worker {first})"
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
