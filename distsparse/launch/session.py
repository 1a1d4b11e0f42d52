"""A quiet Ray session with the settings that short runs and many trials need."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from distsparse.config import Launch

# Seen on Ray 2.60: reports are drained once per health check, which paces training at the default of 2 s;
# a chdir per trial would break relative data paths; the loggers cost half of a short trial.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def require(launch: Launch) -> int:
    """Return how many runs with these settings the cluster holds at once.

    Raises:
        ValueError: it does not hold one, which would wait for ever.
    """
    has = ray.cluster_resources()
    processes = max(launch.workers, 1)
    fits = []
    for field, kind, each in (
        ("cpus_per_worker", "CPU", launch.cpus_per_worker),
        ("gpus_per_worker", "GPU", launch.gpus_per_worker),
    ):
        if each > 0:
            available = has.get(kind, 0)
            if available < each * processes:
                raise ValueError(
                    f"launch.{field} = {each:g} for {processes} process(es): "
                    f"Ray has {available:g} {kind}s here; at most that many can be asked for"
                )
            fits.append(int(available / (each * processes)))
    return min(fits)


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
        ray.init(
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
