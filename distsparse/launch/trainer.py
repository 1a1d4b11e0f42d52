"""A run on Ray Train workers: data parallel, one process each."""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Queue

from distsparse import config as settings
from distsparse.launch import failures
from distsparse.launch.record import (
    last_history,
    record_completed,
    record_failed,
    restored_history,
    saved_by_ray,
    trial_folder,
)
from distsparse.launch.worker import run_worker
from distsparse.train.build import build_method
from distsparse.train.history import Row
from distsparse.train.progress import Progress, describe
from distsparse.train.setup import check, make_plan


class _Forward(UserCallback):  # type: ignore[misc]  # ray is untyped
    """Send what rank 0 reports, and what fails, from Ray's controller process to the driver."""

    def __init__(self, queue: Queue, max_failures: int) -> None:
        self._queue = queue
        self._max_failures = max_failures
        self._num_failures = 0

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        self._queue.put(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        self._num_failures += 1
        if self._num_failures <= self._max_failures:
            count = f"restart {self._num_failures} of {self._max_failures}"
            self._queue.put({"line": f"{failures.describe(worker_exceptions)}: {count}"})


def run_on_workers(
    config: settings.RunConfig,
    root: Path,
    *,
    verbose: bool,
    callbacks: Sequence[UserCallback] = (),
) -> Row:
    """Train on ``launch.workers`` Ray Train workers, from the trial's last checkpoint if it has one.

    ``root`` must be reachable from every node. After a death all workers begin again from the last
    checkpoint, at most ``launch.max_failures`` times. A run that fails becomes a row with its error; one that
    is interrupted leaves its checkpoints. Returns the trial's row.

    Raises:
        KeyboardInterrupt: Ctrl-C; Ray has stopped the workers.
    """
    folder = trial_folder(root, config)
    timeout_s = math.ceil(config.launch.timeout_s)
    # Of Ray's own barrier, at each report; by default it waits for ever.
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(timeout_s)
    with _progress(config, enabled=verbose) as forward:
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"config": config.to_dict(), "folder": str(folder)},
            torch_config=TorchConfig(timeout_s=timeout_s),
            scaling_config=ScalingConfig(
                num_workers=config.launch.workers,
                use_gpu=config.launch.gpus_per_worker > 0,
                resources_per_worker=_resources(config),
            ),
            run_config=RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                # Without a limit a group of workers that the cluster cannot hold is retried for ever.
                failure_config=FailureConfig(
                    max_failures=config.launch.max_failures, controller_failure_limit=3
                ),
                checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
                logging_config=LoggingConfig(log_level="ERROR"),
                callbacks=[failures.GiveUp(), *forward, *callbacks],
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            return record_failed(root, config, last_history(folder), failures.reason(error))
        except SystemExit:  # what Ray makes of Ctrl-C
            raise KeyboardInterrupt from None
    *others, last = saved_by_ray(folder)
    row = record_completed(root, config, restored_history(last), last)
    for other in others:  # the run is over: the last one is enough
        shutil.rmtree(other)
    return row


def _next(queue: Queue) -> dict[str, Any] | None:
    """Return what was sent next; None at the end, also if the run was interrupted and its queue is gone."""
    try:
        metrics: dict[str, Any] | None = queue.get()
    except RayActorError:
        return None
    return metrics


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
        while (metrics := _next(queue)) is not None:
            if "line" in metrics:
                progress.line(metrics["line"])
            progress.advance(metrics.get("step", shown) - shown)
            shown = metrics.get("step", shown)
            if metrics.get("steps") == shown:
                progress.line(describe(metrics, plan.num_epochs))

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield [_Forward(queue, config.launch.max_failures)]
        queue.put(None)
        thread.join()
    finally:
        progress.close()
        queue.shutdown(force=True)
