"""Nodes that die and nodes that come: the run goes on with as many workers as fit, and the same masks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from parts import equal
from plants import outcome, planted

from distsparse.config import RunConfig
from distsparse.launch import run_local, trainer
from distsparse.launch.record import saved_by_ray, trial_folder
from distsparse.launch.session import connected
from distsparse.results import read_trial

VALUES = {"train.precision": "fp64"}
Calls = tuple[Callable[[], Callable[[], None]], Callable[[], None], Callable[[], None]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def elastic(root: Path, pause_s: float) -> RunConfig:
    return planted("none", root, pause_s=pause_s, **VALUES, **{"launch.workers": 2, "launch.min_workers": 1})


@contextmanager
def changing_cluster(root: Path, config: RunConfig) -> Iterator[Calls]:
    """Give functions that add a node of one CPU, start the run, and wait for its first checkpoint.

    The first returns one that kills the node. The run ends within the block's exit.
    """
    from ray.cluster_utils import Cluster

    rows: list[dict[str, Any]] = []
    run = threading.Thread(target=lambda: rows.append(trainer.run_on_workers(config, root, verbose=True)))

    def first_save() -> None:
        while not saved_by_ray(trial_folder(root, config)) and run.is_alive():
            time.sleep(0.05)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})

    def add_node() -> Callable[[], None]:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        return lambda: cluster.remove_node(node, allow_graceful=False)

    try:
        with connected(cluster.address):
            yield add_node, run.start, first_save
            run.join()
    finally:
        cluster.shutdown()
    assert rows[0]["status"] == "completed", rows[0]["error"]


def same_as_one_process(root: Path, config: RunConfig, *, world_size: int) -> None:
    """Compare with a run without workers: the topology after each update, and the final masks."""
    alone = planted("none", root, **VALUES)
    run_local(alone, root / "alone", verbose=False)
    (row,) = read_trial(root, study=config.study, trial=config.key) or [{}]
    assert row["world_size"] == world_size
    expected, found = outcome(root / "alone", alone), outcome(root, config)
    assert found["rewires"] == expected["rewires"]  # with a digest of each layer's mask after each update
    assert equal(found["masks"], expected["masks"])


def test_goes_on_with_one_of_two_workers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = elastic(tmp_path, pause_s=0.5)
    with changing_cluster(tmp_path, config) as (add_node, fit, first_save):
        add_node()
        leaving = add_node()
        fit()
        first_save()
        leaving()
    output = capfd.readouterr().out
    assert "goes on with 1 of 2 workers" in output
    assert "resumed at step" in output
    same_as_one_process(tmp_path, config, world_size=1)


def test_goes_on_with_two_workers_when_a_node_comes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray looks for room once a minute.
    monkeypatch.setattr(
        trainer, "ScalingConfig", partial(trainer.ScalingConfig, elastic_resize_monitor_interval_s=5)
    )
    config = elastic(tmp_path, pause_s=2)
    with changing_cluster(tmp_path, config) as (add_node, fit, first_save):
        add_node()
        fit()
        first_save()
        add_node()
    output = capfd.readouterr().out
    alone, together = (output.index(f"goes on with {number} of 2 workers") for number in (1, 2))
    assert alone < together < output.rindex("resumed at step")
    same_as_one_process(tmp_path, config, world_size=2)
