"""SIGKILL of a node: its raylet and its worker go, another node takes the worker's place."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from plants import outcome, planted, same

from distsparse.launch.record import saved_by_ray, trial_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_bit_for_bit_on_another_node(
    two_undisturbed: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from distsparse.launch.session import connected
    from distsparse.launch.trainer import run_on_workers

    config = planted("none", tmp_path, pause_s=0.5, **{"launch.workers": 2})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
        cluster.wait_for_nodes()
        with connected(cluster.address):
            rows: list[dict[str, Any]] = []
            fit = threading.Thread(target=lambda: rows.append(run_on_workers(config, tmp_path, verbose=True)))
            fit.start()
            while not saved_by_ray(trial_folder(tmp_path, config)) and fit.is_alive():
                time.sleep(0.05)
            busy = {
                actor["NodeID"]
                for actor in map(dict, _actors())
                if "RayTrainWorker" in actor["ClassName"] and actor["State"] == "ALIVE"
            }
            assert len(busy) == 2
            cluster.remove_node(next(node for node in nodes if node.node_id in busy), allow_graceful=False)
            fit.join()
            deadline = time.monotonic() + 60  # Ray asks a node a few times before it takes it for dead
            while len([node for node in ray.nodes() if node["Alive"]]) > 3 and time.monotonic() < deadline:
                time.sleep(0.5)
            assert len([node for node in ray.nodes() if node["Alive"]]) == 3
    finally:
        cluster.shutdown()
    assert rows[0]["status"] == "completed", rows[0]["error"]
    assert same(outcome(tmp_path, config), two_undisturbed)
    output = capfd.readouterr().out
    assert ": restart 1 of 3" in output
    assert "resumed at step" in output


def test_what_the_driver_watches_by_is_on_its_own_node() -> None:
    """Else a node of the workers could take it along."""
    import ray
    from ray.cluster_utils import Cluster

    from distsparse.launch.last_step import beside_driver
    from distsparse.launch.session import connected

    class Anything:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        with connected(cluster.address):
            own = ray.get_runtime_context().get_node_id()
            actors = [ray.remote(Anything).options(**beside_driver()).remote() for _ in range(8)]
            assert ray.get([actor.node.remote() for actor in actors]) == [own] * 8
    finally:
        cluster.shutdown()


def _actors() -> list[dict[str, Any]]:
    from ray.util.state import list_actors

    return [
        {"NodeID": actor.node_id, "ClassName": actor.class_name, "State": actor.state}
        for actor in list_actors(limit=1000)
    ]
