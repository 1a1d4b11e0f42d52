"""A run in TensorBoard, W&B and MLflow, read back by their own packages."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pandas as pd
import pytest
import readers
from parts import tiny

from distsparse.config import RunConfig
from distsparse.launch import run, run_local
from distsparse.launch.record import checkpoints_of
from distsparse.loggers import check_installed
from distsparse.loggers.records import records
from distsparse.train import LocalReporter

READERS = {"tensorboard": readers.tensorboard, "wandb": readers.wandb, "mlflow": readers.mlflow}
ON = {"tensorboard": True, "wandb": "offline", "mlflow": True}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(params=list(READERS))
def name(request: pytest.FixtureRequest) -> str:
    if request.param != "tensorboard":
        pytest.importorskip(request.param, reason=f"distsparse[{request.param}] is not installed")
    return str(request.param)


def expected(root: Path, config: RunConfig) -> dict[str, list[tuple[int, float]]]:
    """What the tables say."""
    study = root / config.study
    steps, rewires = (
        pd.read_parquet(study / table, filters=[("trial", "==", config.key)])
        for table in ("steps", "rewires")
    )
    values: dict[str, list[tuple[int, float]]] = {}
    for column in steps.columns.drop(["study", "trial", "step"]):
        rows = steps[["step", column]].dropna()
        if len(rows):
            values[column] = list(rows.itertuples(index=False, name=None))
    for row in rewires.itertuples():
        values.setdefault(f"density/{row.layer}", []).append((row.step, row.nnz / row.num_weights))
    for step, layers in rewires[rewires["step"] > 0].groupby("step"):
        dropped, grown = layers["num_dropped"].sum(), layers["num_grown"].sum()
        values.setdefault("mask_update/num_dropped", []).append((step, dropped))
        values.setdefault("mask_update/num_grown", []).append((step, grown))
        fraction = dropped / (layers["nnz"].sum() + dropped - grown)
        values.setdefault("mask_update/fraction", []).append((step, fraction))
    return values


def check_equal(logged: readers.Logged, root: Path, config: RunConfig) -> None:
    wanted = expected(root, config)
    assert logged.values.keys() == wanted.keys()
    for column, points in wanted.items():
        assert [step for step, _ in logged.values[column]] == [step for step, _ in points], column
        values = [value for _, value in points]
        assert [value for _, value in logged.values[column]] == pytest.approx(values, rel=1e-6)


class Ended(LocalReporter):
    """Ends a run as a scheduler does, after rows that no checkpoint has."""

    def stops_after(self, step: int) -> bool:
        if step == 18:
            raise SystemExit
        return False


def test_holds_the_tables_also_after_a_resume_and_a_new_start(name: str, tmp_path: Path) -> None:
    config = tiny({f"loggers.{name}": ON[name], "loggers.tags": ["mine"], "method.delta_T": 4})
    read = READERS[name]
    reporter = Ended(checkpoints_of(tmp_path, config), keep=2)
    with pytest.raises(SystemExit):
        run_local(config, tmp_path, verbose=False, reporter=reporter)
    left = read(tmp_path, config)
    assert left.status == "stopped"
    assert left.final_accuracy is None
    assert [step for step, _ in left.values["train_loss"]] == [4, 8, 12, 16]

    row = run(config, tmp_path, resume=True)  # from step 12
    logged = read(tmp_path, config)
    assert [step for step, _ in logged.values["train_loss"]] == [4, 8, 12, 16, 20, 24]
    # A row that was logged before is not logged again: its time is that of the first attempt.
    again = {column: logged.values.pop(column) for column in ("samples_per_s", "elapsed_s")}
    wanted = expected(tmp_path, config)
    for column in again:
        del wanted[column]
    assert logged.values.keys() == wanted.keys()
    for column, points in wanted.items():
        assert logged.values[column] == [(step, pytest.approx(value)) for step, value in points]
    assert logged.status == "completed"
    assert logged.final_accuracy == pytest.approx(row["accuracy"])

    run(config, tmp_path)  # not resumed: all is new
    logged = read(tmp_path, config)
    check_equal(logged, tmp_path, config)
    assert logged.status == "completed"


def test_a_failed_run_says_why(name: str, tmp_path: Path) -> None:
    config = tiny({"model": {"name": "parts:failing"}, f"loggers.{name}": ON[name]})
    run_local(config, tmp_path, verbose=False)
    logged = READERS[name](tmp_path, config)
    assert logged.status == "failed: ArithmeticError: planted at call 13"
    check_equal(logged, tmp_path, config)


def test_mlflow_run_has_configuration_and_tags(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="distsparse[mlflow] is not installed")
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    config = tiny({"loggers": {"mlflow": True, "mlflow_uri": uri, "tags": ["mine"]}, "study": "s"})
    run_local(config, tmp_path, verbose=False)
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    assert found.info.run_name == config.key
    assert found.data.params == {column: str(value) for column, value in config.flat().items()}
    assert found.data.tags["mine"] == "true"
    assert found.data.tags["distsparse.method"] == "rigl"


def blocked_folder(root: Path, config: RunConfig) -> None:
    (root / config.study).mkdir(parents=True)
    (root / config.study / "tensorboard").write_text("no folder")


FAULTS: dict[str, tuple[dict[str, object], Callable[[Path, RunConfig], object]]] = {
    "tensorboard": ({}, blocked_folder),
    "wandb": ({"loggers.wandb": "online"}, lambda root, config: None),
    "mlflow": ({"loggers.mlflow_uri": "http://127.0.0.1:9"}, lambda root, config: None),
}


def test_a_tracker_that_fails_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no credentials
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    values, plant = FAULTS[name]
    config = tiny({f"loggers.{name}": ON[name], **values})
    plant(tmp_path, config)
    row = run_local(config, tmp_path, verbose=True)
    assert row["status"] == "completed"
    lines = [line for line in capsys.readouterr().out.splitlines() if "has not all of this run" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{name} has not all of this run: ")


def test_an_address_in_a_line_is_without_its_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="distsparse[mlflow] is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:geheim@127.0.0.1:9")
    run_local(tiny({"loggers.mlflow": True}), tmp_path, verbose=True)
    output = capsys.readouterr().out
    assert "mlflow has not all of this run" in output
    assert "geheim" not in output


def test_a_tracker_that_was_given_up_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distsparse.loggers import Logs, tensorboard

    free, written = Event(), []

    class Slow:
        num_records = 0

        def log(self, new: object) -> None:
            free.wait()
            written.append(new)

        def end(self, ended: object) -> None:
            written.append(ended)

    monkeypatch.setattr(tensorboard, "open_run", lambda identity, *, resumed: Slow())
    logs = Logs(tiny({"loggers.tensorboard": True, "launch.timeout_s": 0.2}), tmp_path)
    for step in (1, 2):
        logs.send([{"step": number, "train_loss": 1.0} for number in range(1, step + 1)], [])
    logs.end({"status": "completed"}, [], [])
    (line,) = logs.lines()
    assert line.startswith("tensorboard has not all of this run: no answer within 0 s")
    free.set()
    deadline = time.monotonic() + 10
    while any(thread.name == "logs to tensorboard" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(written) == 1


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny({"loggers.wandb": "offline"})
    with pytest.raises(
        ValueError, match=r"loggers\.wandb = 'offline': needs pip install 'distsparse\[wandb\]'"
    ):
        run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_same_name_is_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ValueError, match="needs pip install"):
        check_installed(tiny({"loggers.wandb": "offline"}).loggers)


def test_nothing_is_loaded_without_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tensorboard", "wandb", "mlflow", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)
    run_local(tiny(), tmp_path, verbose=False)
    assert {path.name for path in (tmp_path / "default").iterdir() if not path.name.startswith(".")} == {
        "checkpoints", "layers", "rewires", "steps", "trials",
    }  # fmt: skip


def test_records_keep_their_order_however_often_they_are_asked_for() -> None:
    def update(step: int, dropped: int) -> list[dict[str, object]]:
        layer = {"step": step, "num_weights": 20, "num_dropped": dropped, "num_grown": dropped}
        return [{**layer, "layer": "a", "nnz": 10}, {**layer, "layer": "b", "nnz": 5}]

    steps = [
        {"step": 2, "train_loss": 1.0, "grad_norm": None, "flag": True},
        {"step": 4, "train_loss": math.nan},
    ]
    # Two updates at 4: a rewind's, then the next step's.
    rewires = [*update(0, 20), *update(2, 3), *update(4, 1), *update(4, 2)]
    found = records(steps, rewires)
    assert [(step, sorted(values)) for step, values in found[:2]] == [
        (0, ["density/a", "density/b"]),
        (2, ["train_loss"]),
    ]
    assert found[2] == (
        2,
        {
            "density/a": 0.5,
            "density/b": 0.25,
            "mask_update/num_dropped": 6,
            "mask_update/num_grown": 6,
            "mask_update/fraction": 6 / 15,
        },
    )
    assert [values.get("mask_update/num_dropped") for _, values in found[3:]] == [None, 2, 4]
    # As a run sends them: after each row of `steps`, with the updates since.
    sent = records(steps[:1], rewires[:2]) + records(steps[1:], rewires[2:6]) + records([], rewires[6:])
    assert sent == found
