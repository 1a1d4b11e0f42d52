"""What a tracker holds of a trial, as its own package reads it."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from distsparse.config import RunConfig


class Logged(NamedTuple):
    values: dict[str, list[tuple[int, float]]]
    status: str
    final_accuracy: float | None


def tensorboard(root: Path, config: RunConfig) -> Logged:
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

    folder = root / config.study / "tensorboard" / config.key
    events = EventAccumulator(str(folder), size_guidance={TENSORS: 0}).Reload()
    found = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    *_, outcome = events.Tensors("outcome/text_summary")
    ((_, accuracy),) = found.get("final/accuracy", [(0, None)])
    values = {name: points for name, points in found.items() if not name.startswith("final/")}
    return Logged(values, outcome.tensor_proto.string_val[0].decode(), accuracy)


def mlflow(root: Path, config: RunConfig) -> Logged:
    client = pytest.importorskip("mlflow").MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(config.study).experiment_id
    (run,) = client.search_runs([experiment], f"tags.`distsparse.trial` = '{config.key}'")
    names = [name for name in run.data.metrics if not name.startswith("final/")]
    history = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    values = {name: [(point.step, point.value) for point in points] for name, points in history.items()}
    ends = {"FINISHED": "completed", "FAILED": "failed", "KILLED": "stopped"}
    status = run.data.tags["status"]
    assert ends[run.info.status] == status
    error = run.data.tags["error"]
    return Logged(values, f"{status}: {error}" if error else status, run.data.metrics.get("final/accuracy"))


def wandb(root: Path, config: RunConfig) -> Logged:
    """Read the newest offline run, which holds all that earlier processes logged too."""
    folders = (root / config.study / "wandb").glob(f"offline-run-*-{config.key}-*")
    newest = max(folders, key=lambda folder: folder.stat().st_mtime_ns)
    (file,) = newest.glob("*.wandb")
    values: dict[str, list[tuple[int, float]]] = {}
    summary: dict[str, Any] = {}
    for record in _ended_wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            for name, value in row.items():
                if name != "step" and not name.startswith("_"):
                    values.setdefault(name, []).append((int(row["step"]), float(value)))
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    status, error = summary["status"], summary["error"]
    return Logged(values, f"{status}: {error}" if error else status, summary.get("final/accuracy"))


def _ended_wandb_records(file: Path) -> list[Any]:
    """Return the records once the last is there: `finish` returns before W&B's own process has written it."""
    end = time.monotonic() + 30
    while True:
        records = list(_wandb_records(file))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        assert time.monotonic() < end, f"{file} has no end after {len(records)} records"
        time.sleep(0.02)


def _wandb_records(file: Path) -> Iterator[Any]:
    """Yield the records of W&B's file, a LevelDB log: blocks of 32 KiB, of which no chunk crosses the end."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + size > len(data):
            return  # W&B is still writing it
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
