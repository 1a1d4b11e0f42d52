from __future__ import annotations

import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
from parts import tiny

from distsparse import export, results
from distsparse.cli.main import main
from distsparse.config import RunConfig
from distsparse.launch import record_latency, run
from distsparse.launch.latency import Conditions, measure_again, measure_trial

CONDITIONS = Conditions(batch_sizes=(1, 3))


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, RunConfig, dict]:
    root, config = tmp_path / "runs", tiny({"method.sparsity": 0.9})
    return root, config, run(config, root)


def latencies(root: Path) -> pd.DataFrame:
    return pd.read_parquet(root / "default" / "latencies").sort_values(["hostname", "format", "batch_size"])


def test_a_row_for_each_format_and_batch_size(trained: tuple[Path, RunConfig, dict]) -> None:
    root, config, row = trained
    measured, problem = record_latency(root, config, row)
    assert problem is None
    found = latencies(root)
    assert [*zip(found["format"], found["batch_size"], strict=True)] == [
        ("csr", 1),
        ("csr", 64),
        ("dense", 1),
        ("dense", 64),
    ]
    assert (found["p10_ms"] <= found["p50_ms"]).all()
    assert (found["p50_ms"] <= found["p90_ms"]).all()
    for name, size, median in found[["format", "batch_size", "p50_ms"]].itertuples(index=False):
        assert measured[f"latency_{name}_b{size}_ms"] == median
    assert set(found["hostname"]) == {export.describe()["hostname"]}
    assert set(found["trial"]) == {config.key}
    assert found["num_threads"].tolist() == [1] * 4


def test_the_same_machine_replaces_its_rows_and_another_adds_its_own(
    trained: tuple[Path, RunConfig, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, config, row = trained
    measure_trial(root, config, row, CONDITIONS)
    first = latencies(root)
    measure_trial(root, config, row, CONDITIONS)
    second = latencies(root)
    assert len(first) == len(second) == 4
    assert (second["measured_at"].to_numpy() > first["measured_at"].to_numpy()).all()
    here = export.describe()
    monkeypatch.setattr(export, "describe", lambda: here | {"hostname": "zebra"})
    measure_trial(root, config, row, Conditions(batch_sizes=(1,), num_threads=(1, 2)))
    third = latencies(root)
    assert third["hostname"].value_counts().to_dict() == {here["hostname"]: 4, "zebra": 4}
    assert third["p50_ms"].tolist()[:4] == second["p50_ms"].tolist()


def test_half_precision_is_measured_dense(trained: tuple[Path, RunConfig, dict]) -> None:
    root, config, row = trained
    measured = measure_trial(root, config, row, Conditions(batch_sizes=(1,), dtypes=("float32", "bfloat16")))
    assert [(found["format"], found["dtype"]) for found in measured] == [
        ("dense", "float32"),
        ("csr", "float32"),
        ("dense", "bfloat16"),
    ]


def test_one_network_that_is_gone_does_not_stop_the_others(trained: tuple[Path, RunConfig, dict]) -> None:
    root, config, row = trained
    gone = row | {"checkpoint": str(root / "nowhere")}
    outcomes = list(measure_again(root, [(config, gone), (config, row)], CONDITIONS))
    assert [len(rows) for _, rows, _ in outcomes] == [0, 4]
    assert "nowhere" in str(outcomes[0][2])
    assert outcomes[1][2] is None


def test_the_command_measures_results_that_were_moved(
    trained: tuple[Path, RunConfig, dict], capsys: pytest.CaptureFixture[str]
) -> None:
    root, config, _ = trained
    moved = root.with_name("moved")
    shutil.move(root, moved)
    for folder in (moved, moved / "default"):
        assert main(["latency", str(folder), "--batch-sizes", "1"]) == 0
    out = capsys.readouterr().out
    assert config.key in out
    assert "csr" in out
    assert len(results.load(moved, "latencies")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trial", "0123456789ab"], "--trial 0123456789ab: no completed trial"),
        (["--threads", "0"], "--threads 0: allowed: at least 1"),
        (["--batch-sizes", "4", "-1"], "--batch-sizes 4 -1: allowed: at least 1"),
    ],
)
def test_the_command_refuses(
    trained: tuple[Path, RunConfig, dict],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["latency", str(trained[0]), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_alone_on_a_node_waits_for_all_its_cpus() -> None:
    import ray

    from distsparse.launch.session import alone_on_a_node, connected

    def held_cpus() -> float:  # in here, so that it travels by value
        import ray

        return ray.get_runtime_context().get_assigned_resources()["CPU"]

    with connected(num_cpus=2):
        busy = ray.remote(lambda: time.sleep(4)).remote()
        while ray.available_resources().get("CPU", 0) == 2:
            time.sleep(0.05)
        started = time.monotonic()
        assert alone_on_a_node(held_cpus) == 2
        assert time.monotonic() - started > 1
        ray.get(busy)
