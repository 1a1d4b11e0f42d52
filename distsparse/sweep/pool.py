"""Data-parallel workers that stay for one trial after another: a Ray Train run costs each 10 to 20 s."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import distributed

from distsparse import export
from distsparse.config import Launch, RunConfig, parse
from distsparse.dist import leave
from distsparse.launch.failures import may_pass
from distsparse.launch.rank_zero import logging_on_rank_zero
from distsparse.launch.record import checkpoints_of, last_history, record_completed, record_failed
from distsparse.loggers import Logs
from distsparse.sweep.shared import fetch
from distsparse.sweep.stop import StopRule
from distsparse.train import check, storage, train
from distsparse.train.history import History, Row
from distsparse.train.reporter import LocalReporter

AGREE_EVERY = 10
"""steps between two looks at whether to stop, on which all ranks agree by a reduction"""
GRACE_S = 5.0
"""seconds that the other workers have to report, too, after one of them failed"""


@dataclass(frozen=True)
class Failure:
    """Why a worker did not train to the end."""

    text: str
    may_pass: bool = False
    """whether another attempt could do better"""
    interrupted: bool = False


def bundles(launch: Launch) -> list[dict[str, float]]:
    """Return the resources of a trial with a pool: its own process, which only waits, and each worker's."""
    worker = {"CPU": launch.cpus_per_worker, "GPU": launch.gpus_per_worker}
    held = {kind: amount for kind, amount in worker.items() if amount > 0}
    return [{"memory": 1.0}, *([held] * launch.workers)]


def run_on_pool(
    config: RunConfig,
    root: Path,
    rule: StopRule,
    reference: ray.ObjectRef | None,
    logs: Logs,
    *,
    until: int | None = None,
) -> Row:
    """Train on the pool of this trial's process, from the trial's last checkpoint; return the trial's row.

    A worker's error becomes a row. ``root`` must be reachable from every node. ``logs`` are the experiment
    trackers, which hear of the outcome; rank 0 has its own.

    Raises:
        KeyboardInterrupt: the rule applied, or the step ``until`` was done; the last step is saved.
        RayActorError: a worker or its node died; the pool is gone, and another process may try again.
        RuntimeError: the same, where it only shows in a connection that broke.
    """
    kept = checkpoints_of(root, config)
    saved = LocalReporter(kept, keep=config.checkpoint.keep).saved()
    launch = config.launch
    workers = _workers(launch.workers, launch.cpus_per_worker, launch.gpus_per_worker)
    try:
        place = ray.get(workers[0].place.remote())
        values = {"config": config.to_dict(), "root": str(root), "saved": saved, "place": place}
        values |= {"rule": (rule.file, rule.deadline), "until": until}
        # The reference in a tuple: Ray would put what it refers to in its place.
        runs = [worker.run.remote(values, rank, (reference,)) for rank, worker in enumerate(workers)]
        failures = _failures(runs)
    except ray.exceptions.RayError:
        _let_go(workers)
        raise
    failure = decisive(failures)
    if failure is not None and failure.interrupted:
        raise KeyboardInterrupt
    if failure is not None:
        _let_go(workers)  # a collective may be half done
        if failure.may_pass:
            raise RuntimeError(failure.text)
        history = last_history(kept)
        row = record_failed(root, config, history, failure.text)
    else:
        history = last_history(kept)
        row = record_completed(root, config, history, LocalReporter(kept, keep=1).saved()[-1])
        LocalReporter(kept, keep=1).finish()
    logs.end(row, history.steps, history.rewires)
    return row


@lru_cache(maxsize=1)
def _workers(count: int, cpus: float, gpus: float) -> list[Any]:
    """Start the workers on the bundles of this trial's placement group; this process's trials share them."""
    group = ray.util.get_current_placement_group()
    worker = ray.remote(_Worker)
    options = {"num_cpus": cpus, "num_gpus": gpus}
    places = [PlacementGroupSchedulingStrategy(group, 1 + rank) for rank in range(count)]
    return [worker.options(**options, scheduling_strategy=place).remote() for place in places]


def _let_go(workers: Sequence[Any]) -> None:
    for worker in workers:
        ray.kill(worker)
    _workers.cache_clear()


def decisive(failures: Sequence[Failure]) -> Failure | None:
    """Return what ended the trial, of each worker's failure in order of rank.

    What one worker raised breaks the connections of the others, and so does a death: such an error may pass.
    Where one could not save, the others were interrupted.
    """
    return min(failures, key=lambda failure: (failure.interrupted, failure.may_pass), default=None)


def _failures(references: Sequence[ray.ObjectRef]) -> list[Failure]:
    """Wait for all workers, or a moment once one has failed; return their failures in order of rank."""
    found: dict[ray.ObjectRef, Failure | None] = {}
    while len(found) < len(references):
        failed = any(found.values())
        open_ = [reference for reference in references if reference not in found]
        done, _ = ray.wait(open_, num_returns=1, timeout=GRACE_S if failed else None)
        if not done:
            break
        found[done[0]] = ray.get(done[0])
    return [failure for reference in references if (failure := found.get(reference)) is not None]


class _Worker:
    """One process of the pool."""

    def place(self) -> tuple[str, int]:
        """Return this node's address and a port that is free on it."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def run(
        self, values: Mapping[str, Any], rank: int, reference: tuple[ray.ObjectRef | None]
    ) -> Failure | None:
        """Train one trial as a rank of its process group; return what failed, if something did."""
        config = parse(values["config"])
        address, port = values["place"]
        os.environ |= {
            "RANK": str(rank),
            # Ray shows each worker its own devices alone.
            "LOCAL_RANK": "0" if torch.cuda.is_available() else str(rank),
            "WORLD_SIZE": str(config.launch.workers),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            timeout=timedelta(seconds=config.launch.timeout_s),
        )
        failure = None
        try:
            # A function of its own: what DDP holds must be gone before the process group is.
            _train(config, values, rank, reference[0])
            distributed.barrier()
        except KeyboardInterrupt:  # the loop's own, after a step on which all ranks agreed
            failure = Failure("interrupted", interrupted=True)
        except Exception as error:  # of this trial alone; the group is left to end with the process
            reason = " ".join(str(error).split())
            text = f"{type(error).__name__}: {reason} (worker {rank})"
            return Failure(text, may_pass=may_pass(error))
        leave()
        return failure


def _train(config: RunConfig, values: Mapping[str, Any], rank: int, reference: ray.ObjectRef | None) -> None:
    dataset = check(config, None if reference is None else fetch(reference))
    kept = checkpoints_of(Path(values["root"]), config)
    saver = LocalReporter(kept, keep=config.checkpoint.keep) if rank == 0 else None
    reporter = _Reporter(rank, values, saver, config.launch.workers)
    history = History(machine=export.describe())
    with logging_on_rank_zero(config, Path(values["root"]), history, rank=rank) as logs:
        train(config, dataset, reporter, history=history, logs=logs)


class _Reporter:
    """Rank 0 saves checkpoints as a run in one process does; all ranks resume from those that it saw."""

    def __init__(self, rank: int, values: Mapping[str, Any], saver: LocalReporter | None, size: int) -> None:
        self._rank, self._size, self._saver = rank, size, saver
        self._saved: list[str] = values["saved"]
        self._rule, self._until = StopRule(*values["rule"]), values["until"]

    @property
    def rank(self) -> int:
        """This process, 0 ≤ rank < world_size."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return self._size

    def checkpoints(self) -> Sequence[AbstractContextManager[Path]]:
        """Return the checkpoints that were there when the trial began, newest first."""
        return [storage.reading(saved) for saved in reversed(self._saved)]

    def stops_after(self, step: int) -> bool:
        """Tell whether the step ends the trial's part; at each ``AGREE_EVERY``-th, if a rank saw a stop."""
        if step == self._until:
            return True
        if step % AGREE_EVERY:
            return False
        device = "cuda" if torch.cuda.is_available() else "cpu"
        flag = torch.tensor(self._rule.applies(), dtype=torch.uint8, device=device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag)

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        """Save on rank 0."""
        if self._saver is not None:
            self._saver.report(metrics, step=step, save=save)
