"""A quiet Ray session with the settings that short runs and many trials need."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distsparse.config import Launch

Result = TypeVar("Result")

# Seen on Ray 2.60: reports are drained once per health check, which paces training at the default of 2 s;
# a chdir per trial would break relative data paths; the loggers cost half of a short trial.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The results are a sweep's record, not snapshots of Tune; a sweep takes Ctrl-C itself.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A trial's last report says how it ended, and has no metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
STARTS = 4
"""attempts to start Ray on a machine that is too busy for it"""


def fitting(launch: Launch) -> int:
    """Return how many runs with these settings the cluster, as it is now, holds at once."""
    has = ray.cluster_resources()
    return min(int(has.get(kind, 0) / amount) for _, kind, amount in _needs(launch))


def require(launch: Launch) -> int:
    """Return how many runs with these settings the cluster holds at once.

    Raises:
        ValueError: it does not hold one, which would wait for ever.
    """
    has = ray.cluster_resources()
    for field, kind, amount in _needs(launch):
        if has.get(kind, 0) < amount:
            raise ValueError(
                f"launch.{field} = {getattr(launch, field):g} for {_processes(launch)} process(es): "
                f"Ray has {has.get(kind, 0):g} {kind}s here; at most that many can be asked for"
            )
    return fitting(launch)


def _needs(launch: Launch) -> list[tuple[str, str, float]]:
    """Return what a run takes at least: the field, the kind of resource, the amount for all processes."""
    fields = (("cpus_per_worker", "CPU"), ("gpus_per_worker", "GPU"))
    amounts = [(field, kind, getattr(launch, field) * _processes(launch)) for field, kind in fields]
    return [need for need in amounts if need[2] > 0]


def _processes(launch: Launch) -> int:
    return max(launch.min_workers or launch.workers, 1)


def alone_on_a_node(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a process that holds all CPUs of its node, so that no trial runs there.

    On the cluster's node with the most CPUs, the driver's own if it has as many. Waits until they are free.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    here = ray.get_runtime_context().get_node_id()
    chosen = max(nodes, key=lambda node: (node["Resources"]["CPU"], node["NodeID"] == here))
    task = ray.remote(function).options(
        num_cpus=chosen["Resources"]["CPU"],
        scheduling_strategy=NodeAffinitySchedulingStrategy(chosen["NodeID"], soft=False),
    )
    outcome: Result = ray.get(task.remote(*arguments))
    return outcome


def _start(**options: Any) -> None:
    """Start or join Ray; it gives its processes 30 s to start, which a busy machine may well exceed."""
    for attempt in range(STARTS):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises no more special one
            if "timed out during startup" not in str(error) or attempt + 1 == STARTS:
                raise
            ray.shutdown()


@contextmanager
def connected(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """Hold a Ray session for a block; one that the caller opened before is used, and left open.

    Args:
        address: of a running cluster ("auto", "10.0.0.1:6379", "ray://…"); None starts Ray on this machine,
            also where another cluster runs on it.
        num_cpus: CPUs of a Ray started here; all by default.

    Raises:
        ConnectionError: no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    at_sigterm = signal.getsignal(signal.SIGTERM)
    passed_on = {name: os.environ[name] for name in ENVIRONMENT}
    if data_folder := os.environ.get("DISTSPARSE_DATA"):
        passed_on["DISTSPARSE_DATA"] = data_folder
    try:
        _start(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=True,
            # The dashboard stays on its default: without its state API the placement group of a stopped
            # Ray Train run inside a trial is never freed.
            runtime_env={"env_vars": passed_on},
            num_cpus=None if address else num_cpus,
        )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, at_sigterm)  # ray.init took it, to exit at once
        # ray.init sets its own level again, and Tune's controller prints the traceback of a dead process.
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        yield
    finally:
        ray.shutdown()
