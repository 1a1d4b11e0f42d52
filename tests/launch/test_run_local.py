from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from parts import TINY, equal, tiny
from torch import nn

from distsparse.config import RunConfig
from distsparse.launch import finished_row, record_latency, run, run_local
from distsparse.launch.columns import config_columns
from distsparse.launch.lock import exclusive
from distsparse.launch.record import load_network, trial_folder
from distsparse.results.schema import TABLES

TABLE_NAMES = ("trials", "steps", "rewires", "layers")


def recorded(config: RunConfig, root: Path, **options: Any) -> dict[str, pd.DataFrame]:
    run_local(config, root, verbose=False, **options)
    study = root / config.study
    return {name: pd.read_parquet(study / name) for name in TABLE_NAMES if (study / name).exists()}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    values = {"model": {"name": "mlp", "hidden": [16, 8]}, "data.validation": 10, "study": "s", "seed": 3}
    return recorded(tiny({**values, "sparsify.exclude": ["5.weight"]}), tmp_path_factory.mktemp("run"))


def test_four_tables_with_their_columns(tables: dict[str, pd.DataFrame]) -> None:
    assert set(TABLES) - {"latencies", "lineage"} == set(TABLE_NAMES) == set(tables)
    for name, table in tables.items():
        declared = [column.name for column in TABLES[name]]
        assert [column for column in table if column in declared] == declared
        assert set(table["study"]) == {"s"}
        assert set(table["trial"]) == {tables["trials"]["trial"][0]}
    assert set(tables["trials"]) - {column.name for column in TABLES["trials"]} == set(config_columns())


def test_counts_are_those_of_the_network(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    trial = tables["trials"].iloc[0]
    config = tiny(json.loads(trial["config"]))
    model, masks = load_network(config, Path(trial["checkpoint"]))
    # 12 inputs, 16 and 8 hidden units, 3 classes; the last layer is left dense.
    sizes = {"1.weight": 16 * 12, "3.weight": 8 * 16}
    assert {name: mask.numel() for name, mask in masks.items()} == sizes
    nnz = {name: int((weight != 0).sum()) for name, weight in model.named_parameters() if name in sizes}
    total = sum(sizes.values())
    parameters = 16 * 12 + 16 + 8 * 16 + 8 + 3 * 8 + 3
    assert trial["num_sparsified_parameters"] == total
    assert trial["num_parameters"] == parameters
    assert trial["nnz"] == sum(nnz.values()) == sum(int(mask.sum()) for mask in masks.values())
    assert trial["nnz"] == round(0.3 * total)
    assert trial["requested_sparsity"] == 0.7
    assert trial["sparsity"] == pytest.approx(1 - trial["nnz"] / total)
    assert trial["model_sparsity"] == pytest.approx((total - trial["nnz"]) / parameters)
    layers = tables["layers"].set_index("layer")
    assert layers["nnz"].to_dict() == nnz
    assert layers["num_weights"].to_dict() == sizes
    assert layers["shape"].to_dict() == {"1.weight": "16x12", "3.weight": "8x16"}
    assert set(layers["kind"]) == {"Linear"}
    for name, mask in masks.items():
        assert layers.loc[name, "density"] == pytest.approx(nnz[name] / sizes[name])
        assert layers.loc[name, "sparsity"] == pytest.approx(1 - nnz[name] / sizes[name])
        assert layers.loc[name, "dead_rows"] == sum(not row.any() for row in mask)
        assert layers.loc[name, "flops"] == 2 * sizes[name]


def test_flops_by_hand(tables: dict[str, pd.DataFrame]) -> None:
    """Updates at 3, 6, …, 18 of 24 steps, each with one dense gradient: 2 f_S + f_D (RigL, appendix H)."""
    trial = tables["trials"].iloc[0]
    dense = 2 * (16 * 12 + 8 * 16 + 3 * 8)
    assert trial["dense_inference_flops"] == dense
    sparse = 2 * (int(trial["nnz"]) + 3 * 8)
    assert trial["inference_flops"] == pytest.approx(sparse / dense)
    by_hand = (18 * 3 * sparse + 6 * (2 * sparse + dense)) / (24 * 3 * dense)
    assert trial["num_updates"] == 6
    assert trial["training_flops"] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("method", "num_dense_gradients"),
    [
        ({"name": "dense"}, 0),
        ({"name": "static", "sparsity": 0.7}, 0),
        ({"name": "set", "sparsity": 0.7, "delta_T": 3}, 0),
        ({"name": "rigl", "sparsity": 0.7, "delta_T": 5, "T_end": 1.0}, 4),
        ({"name": "rigl", "sparsity": 0.7, "delta_T": 5, "T_end": 1.0, "grad_accumulation": 2}, 8),
        ({"name": "rigl", "sparsity": 0.7, "delta_T": 2, "T_end": 12, "grad_accumulation": 9}, 12),
    ],
)
def test_training_flops_of_methods(method: dict[str, Any], num_dense_gradients: int, tmp_path: Path) -> None:
    trial = recorded(tiny({"method": method}), tmp_path)["trials"].iloc[0]
    share = trial["inference_flops"]
    assert share == pytest.approx(trial["nnz"] / (12 * 16 + 16 * 3))
    by_hand = (24 * 3 * share + num_dense_gradients * (1 - share)) / (24 * 3)
    assert trial["training_flops"] == pytest.approx(by_hand)
    assert trial["requested_sparsity"] == method.get("sparsity", 0.0)


def test_configuration_by_dotted_name(tables: dict[str, pd.DataFrame]) -> None:
    trial = tables["trials"].iloc[0]
    expected = {
        "seed": 3,
        "method.name": "rigl",
        "method.delta_T": 3,
        "method.alpha": 0.3,
        "model.hidden": "[16, 8]",
        "sparsify.exclude": '["5.weight"]',
        "train.precision": "fp32",
        "launch.workers": 0,
        "optimizer.nesterov": False,
        "lr_schedule.name": "cosine",
    }
    assert {name: trial[name] for name in expected} == expected
    config = tiny(json.loads(trial["config"]))
    assert config.key == trial["trial"]


def test_provenance_and_cost(tables: dict[str, pd.DataFrame]) -> None:
    trial = tables["trials"].iloc[0]
    assert trial["status"] == "completed"
    assert trial["error"] is None or pd.isna(trial["error"])
    assert trial["world_size"] == 1
    assert (trial["steps"], trial["epochs"]) == (24, 2)
    # Evaluations and checkpoints are wall time, and no part of the speed.
    assert 0 < trial["train_s"] < trial["wall_s"]
    assert trial["steps_per_s"] == pytest.approx(24 / trial["train_s"])
    assert tables["steps"]["elapsed_s"].iloc[-1] <= trial["wall_s"]
    assert trial["ray_version"] is None or pd.isna(trial["ray_version"]) or "ray" in sys.modules
    assert trial["samples_per_s"] == pytest.approx(10 * trial["steps_per_s"])
    assert trial["torch_version"] == torch.__version__
    assert trial["started_at"] <= trial["finished_at"]
    assert trial["hostname"]


def test_tables_of_different_methods_are_one_data_set(tmp_path: Path) -> None:
    recorded(tiny({"method": "dense", "optimizer": {"name": "adam"}}), tmp_path)
    recorded(tiny({"method": "rigl", "lr_schedule": "one-cycle"}), tmp_path)
    recorded(tiny({"method": "set", "model": {"name": "parts:dropout_mlp"}}), tmp_path)
    trials = pd.read_parquet(tmp_path / "default" / "trials")
    assert sorted(trials["method.name"]) == ["dense", "rigl", "set"]
    assert trials.set_index("method.name")["method.delta_T"].isna().to_dict() == {
        "dense": True,
        "rigl": False,
        "set": False,
    }


def test_failed_run_is_a_row_with_what_was_done(tmp_path: Path) -> None:
    config = tiny({"model": {"name": "parts:failing", "at": 13}, "train.log_every": 5})
    tables = recorded(config, tmp_path)
    trial = tables["trials"].iloc[0]
    assert trial["status"] == "failed"
    assert trial["error"] == "ArithmeticError: planted at call 13"
    assert finished_row(tmp_path, config) is None
    assert list(tables["steps"]["step"]) == [5, 10, 12]
    assert sorted(set(tables["rewires"]["step"])) == [0, 3, 6, 9]
    # How far it came is known; what only a finished run has is not.
    assert (trial["steps"], trial["num_updates"]) == (12, 3)
    assert trial["wall_s"] > 0
    assert pd.isna(trial["accuracy"])
    assert pd.isna(trial["nnz"])
    assert trial["method.delta_T"] == 3


def test_loss_that_is_not_finite_is_a_failed_row(tmp_path: Path) -> None:
    config = tiny({"model": {"name": "parts:failing", "at": 6, "how": "nan"}, "train.log_every": 1})
    tables = recorded(config, tmp_path)
    trial = tables["trials"].iloc[0]
    assert trial["status"] == "failed"
    assert trial["error"] == "FloatingPointError: the loss is nan at step 6"
    assert list(tables["steps"]["step"]) == [1, 2, 3, 4, 5]


def test_failed_run_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    """Its second life counts training passes from the checkpoint, so it gets past the fault."""
    config = tiny({"model": {"name": "parts:failing", "at": 15}, "train.log_every": 5})
    assert run(config, tmp_path)["status"] == "failed"
    row = run(config, tmp_path, resume=True)
    assert row["status"] == "completed"
    steps = pd.read_parquet(tmp_path / "default" / "steps")
    assert list(steps["step"]) == [5, 10, 12, 15, 20, 24]
    assert run(config, tmp_path)["status"] == "failed"  # without resume it begins anew


def test_completed_run_is_returned_and_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny()
    first = run(config, tmp_path)
    monkeypatch.setattr(sys.modules["distsparse.launch.run"], "run_local", None)
    again = run(config, tmp_path, resume=True)
    assert again["accuracy"] == first["accuracy"]
    assert again["finished_at"] == first["finished_at"].replace(tzinfo=again["finished_at"].tzinfo)


def test_latency_is_measured_once_also_after_an_interruption(tmp_path: Path) -> None:
    sparse = {"method.sparsity": 0.9}
    silent, loud = tiny(sparse), tiny({**sparse, "latency.measure": True, "latency.num_threads": 1})
    assert silent.key == loud.key
    assert run(silent, tmp_path).get("latency_ms") is None
    row = run(loud, tmp_path, resume=True)
    assert row["latency_ms"] > 0
    assert row["latency_ms"] == min(row["latency_dense_b1_ms"], row["latency_csr_b1_ms"])
    assert row["latency_ms"] == row[f"latency_{row['latency_format']}_b1_ms"]
    assert row["latency_num_threads"] == 1
    again = run(loud, tmp_path, resume=True)
    assert again["latency_ms"] == row["latency_ms"]
    trials = pd.read_parquet(tmp_path / "default" / "trials")
    assert trials["latency_dense_b64_ms"][0] == row["latency_dense_b64_ms"] > 0
    assert trials["nnz"][0] == row["nnz"]


def test_latency_of_a_network_in_double_precision(tmp_path: Path) -> None:
    config = tiny({"train.precision": "fp64"})
    row = run(config, tmp_path)
    measured, problem = record_latency(tmp_path, config, row)
    assert problem is None
    assert measured["latency_ms"] > 0


def test_latency_of_a_network_without_a_sparse_layer_is_that_of_the_dense_one(tmp_path: Path) -> None:
    row = run(tiny({"latency.measure": True}), tmp_path)  # 0.7 is below what CSR is worth
    assert row["latency_format"] == "dense"
    assert row["latency_ms"] == row["latency_dense_b1_ms"] > 0
    trial = pd.read_parquet(tmp_path / "default" / "trials").iloc[0]
    assert pd.isna(trial["latency_csr_b1_ms"])
    assert pd.isna(trial["latency_csr_b64_ms"])


def test_network_that_cannot_be_measured_is_still_a_completed_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny({"model": {"name": "parts:by_hand"}, "method.sparsity": 0.9, "latency.measure": True})
    row = run(config, tmp_path, verbose=True)
    assert row["status"] == "completed"
    assert row.get("latency_ms") is None
    assert "latency not measured: AttributeError" in capsys.readouterr().out
    # The weight that the model multiplies by itself cannot be counted, and half a count would be wrong.
    assert row.get("inference_flops") is None


def test_fresh_run_replaces_rows_only_when_it_starts(tmp_path: Path) -> None:
    config = tiny()
    run(config, tmp_path)
    trials = tmp_path / "default" / "trials" / f"{config.key}.parquet"
    before = trials.stat().st_mtime_ns
    with exclusive(trial_folder(tmp_path, config)), pytest.raises(OSError, match="another process trains"):
        run(config, tmp_path)
    assert trials.stat().st_mtime_ns == before
    run(config, tmp_path)
    assert trials.stat().st_mtime_ns > before


def test_recorded_network_is_the_trained_one(tmp_path: Path) -> None:
    config = tiny({"method": "dense"})
    row = run_local(config, tmp_path, verbose=False)
    model, masks = load_network(config, Path(row["checkpoint"]))
    assert isinstance(model, nn.Module)
    again = run_local(config, tmp_path / "again", verbose=False)
    other, _ = load_network(config, Path(again["checkpoint"]))
    assert equal(model.state_dict(), other.state_dict())
    assert all(bool(mask.all()) for mask in masks.values())
    assert row["sparsity"] == 0
    assert row["training_flops"] == row["inference_flops"] == 1


WITHOUT_RAY = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from distsparse.cli.main import main

codes = [
    main(["train", "run.yaml", "--output", "out"]),
    main(["train", "run.yaml", "--output", "out", "--workers", "2"]),
    main(["sweep", "space.yaml", "--output", "out"]),
]
assert codes == [0, 2, 2], codes
assert not any(name.partition(".")[0] == "ray" for name in sys.modules)
"""


def test_trains_and_records_where_ray_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(json.dumps(TINY))
    space = {"base": TINY, "space": {"method.alpha": {"choice": [0.1]}}}
    (tmp_path / "space.yaml").write_text(json.dumps(space))
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    trials = pd.read_parquet(tmp_path / "out" / "default" / "trials")
    assert list(trials["status"]) == ["completed"]
    assert trials["trial"][0] == tiny().key
    with_workers, sweep = result.stderr.splitlines()
    assert "launch.workers = 2: needs Ray (pip install 'distsparse[ray]')" in with_workers
    assert "sweep needs Ray (pip install 'distsparse[ray]')" in sweep
