"""A run on Ray Train workers: data parallel, one process each."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
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
from distsparse.launch.elastic import EqualShares
from distsparse.launch.last_step import beside_driver, last_step
from distsparse.launch.record import (
    checkpoints_of,
    last_history,
    record_completed,
    record_failed,
    restored_history,
    saved_by_ray,
)
from distsparse.launch.stop import stops_on_signals
from distsparse.launch.worker import run_worker
from distsparse.loggers import Logs
from distsparse.train import storage
from distsparse.train.build import build_method
from distsparse.train.history import Row
from distsparse.train.progress import Progress, describe
from distsparse.train.setup import check, make_plan


class _Forward(UserCallback):  # type: ignore[misc]  # ray is untyped
    """Send what rank 0 reports, and what fails, from Ray's controller process to the driver."""

    def __init__(self, queue: Queue, launch: settings.Launch) -> None:
        self._queue = queue
        self._max_failures, self._max_workers = launch.max_failures, launch.workers
        self._num_failures = 0
        self._num_workers = launch.workers

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        if len(metrics) != self._num_workers:
            self._num_workers = len(metrics)
            self._send({"line": f"goes on with {self._num_workers} of {self._max_workers} workers"})
        self._send(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        self._num_failures += 1
        if self._num_failures <= self._max_failures:
            count = f"restart {self._num_failures} of {self._max_failures}"
            self._send({"line": f"{failures.describe(worker_exceptions)}: {count}"})

    def _send(self, message: dict[str, Any]) -> None:
        with suppress(RayActorError):  # nobody watches any more; the run goes on
            self._queue.put(message)


class _Trainer(TorchTrainer):  # type: ignore[misc]  # ray is untyped
    """Leaves SIGINT as it was, by which Ray itself would end the workers at once.

    With several allowed numbers of workers, the run goes on with the largest that fits.
    """

    allowed_workers: Sequence[int] = ()
    _controller: Any = None

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = EqualShares(self.scaling_config, self.allowed_workers)
        return super()._initialize_and_run_controller(**parts)

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """End the workers and what controls them."""
        if self._controller is not None:
            with suppress(RayActorError):  # so it ends
                ray.get(self._controller.abort.remote())


def run_on_workers(
    config: settings.RunConfig,
    root: Path,
    *,
    verbose: bool,
    callbacks: Sequence[UserCallback] = (),
    logs: Logs | None = None,
) -> Row:
    """Train on ``launch.workers`` Ray Train workers, from the trial's last checkpoint if it has one.

    ``checkpoint.storage``, or ``root``, must be reachable from every node. After a death all workers begin
    again from the last checkpoint, at most ``launch.max_failures`` times; with ``launch.min_workers`` also
    where there is no room for as many as before, and again when there is. A run that fails becomes a row with
    its error; one that is interrupted leaves its checkpoints. On SIGINT or SIGTERM the step that runs is
    finished on all workers, and saved; a second one ends them at once. Returns the trial's row.

    ``logs`` are the experiment trackers, for a caller that shows what they could not log; rank 0 has its own.

    Raises:
        KeyboardInterrupt: it was interrupted; the argument is the signal's number.
    """
    place = checkpoints_of(root, config)
    logs = logs or Logs(config, root)
    # In a Tune trial signals are Tune's, and an actor for each trial would cost a second.
    stop = last_step() if threading.current_thread() is threading.main_thread() else None
    with stops_on_signals(lambda: stop and stop.ask.remote()):
        with _progress(config, enabled=verbose) as forward:
            trainer = _trainer(config, root, place, stop, [*forward, *callbacks])
            try:
                result = trainer.fit()
            except TrainingFailedError as error:
                history = last_history(place)
                row = record_failed(root, config, history, failures.reason(error))
                logs.end(row, history.steps, history.rewires)
                return row
            except KeyboardInterrupt:
                trainer.abort()
                raise
        if result.return_value is None:
            raise KeyboardInterrupt
    *others, last = saved_by_ray(place)
    history = restored_history(last)
    row = record_completed(root, config, history, last)
    logs.end(row, history.steps, history.rewires)
    for other in others:  # the run is over: the last one is enough
        storage.remove(other)
    return row


def _trainer(
    config: settings.RunConfig, root: Path, place: str, stop: Any | None, callbacks: Sequence[UserCallback]
) -> _Trainer:
    timeout_s = math.ceil(config.launch.timeout_s)
    # Of Ray's own barrier, at each report; by default it waits for ever.
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(timeout_s)
    allowed = settings.allowed_workers(config)
    elastic = len(allowed) > 1
    # How long Ray waits for room that it takes to be there: a node's death shows after some seconds only.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "20" if elastic else "60"
    trainer = _Trainer(
        run_worker,
        train_loop_config={"config": config.to_dict(), "root": str(root), "place": place, "stop": stop},
        torch_config=TorchConfig(timeout_s=timeout_s),
        scaling_config=ScalingConfig(
            num_workers=(allowed[0], allowed[-1]) if elastic else config.launch.workers,
            use_gpu=config.launch.gpus_per_worker > 0,
            resources_per_worker=_resources(config),
        ),
        run_config=RunConfig(
            name=storage.name_of(place),
            storage_path=storage.parent(place),
            # Without a limit a group of workers that the cluster cannot hold is retried for ever.
            failure_config=FailureConfig(max_failures=config.launch.max_failures, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[failures.GiveUp(), *callbacks],
        ),
    )
    trainer.allowed_workers = allowed
    return trainer


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
    queue = Queue(actor_options=beside_driver())
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
        yield [_Forward(queue, config.launch)]
        with suppress(RayActorError):
            queue.put(None)
        thread.join()
    finally:
        progress.close()
        queue.shutdown(force=True)
