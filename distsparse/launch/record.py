"""From a finished (or failed) run to its rows in the results' tables."""

from __future__ import annotations

import itertools
import json
import types
import typing
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import nn

from distsparse import data, export, results
from distsparse.config import RunConfig, columns
from distsparse.core import SparseWeight, find_weights
from distsparse.train import checkpoint
from distsparse.train.history import History, Row
from distsparse.train.setup import build_method, build_model
from distsparse.version import __version__


def config_columns() -> dict[str, pa.DataType]:
    """Return the column type of every dotted name of a configuration; the same for every trial.

    All tables of a study so have the same columns, whatever method or model a trial used, and pandas reads
    the folder alone.
    """
    return {name: _arrow_type(hint) for name, hint in columns().items() if name not in ("study", "seed")}


def trial_folder(root: Path, config: RunConfig) -> Path:
    """Return the folder of a trial's checkpoints."""
    return root / config.study / "checkpoints" / config.key


def finished_row(root: Path, config: RunConfig) -> Row | None:
    """Return a trial's row if it completed."""
    rows = results.read_trial(root, study=config.study, trial=config.key)
    return rows[0] if rows and rows[0]["status"] == "completed" else None


def record_completed(root: Path, config: RunConfig, history: History, folder: Path) -> Row:
    """Write all rows of a completed run from its last checkpoint; return the trial's row."""
    dataset = data.build(config.data.name, config.data.params)
    model, masks = load_network(config, folder)
    weights = find_weights(model, include=config.sparsify.include, exclude=config.sparsify.exclude)
    flops = export.layer_flops(model.float(), dataset.input_shape)  # an fp64 run's too
    layers = [_layer_row(weight, masks[weight.name], flops) for weight in weights]
    num_weights = sum(row["num_weights"] for row in layers)
    nnz = sum(row["nnz"] for row in layers)
    num_parameters = sum(p.numel() for p in model.parameters())
    sparse = {
        "sparsity": 1 - nnz / num_weights,
        "model_sparsity": (num_weights - nnz) / num_parameters,
        "nnz": nnz,
        "num_parameters": num_parameters,
        "num_sparsified_parameters": num_weights,
        "inference_flops": export.inference_flops(flops, {row["layer"]: row["density"] for row in layers}),
        "training_flops": _training_flops(config, history, flops),
        "dense_inference_flops": float(sum(flops.values())),
        "checkpoint": str(folder),
    }
    return _write(root, config, history, status="completed", error=None, extra=sparse, layers=layers)


def record_failed(root: Path, config: RunConfig, history: History, error: str) -> Row:
    """Write the rows that a failed run leaves; return the trial's row."""
    return _write(root, config, history, status="failed", error=error, extra={}, layers=[])


def record_latency(root: Path, config: RunConfig, row: Row) -> Row:
    """Measure a completed trial's network and put the numbers into its row; return the row.

    Call it when nothing else runs on the cores.
    """
    model, _ = load_network(config, Path(row["checkpoint"]))
    dataset = data.build(config.data.name, config.data.params)
    num_threads = config.latency.num_threads
    measured = export.compare(
        model.float().eval(), dataset.input_shape, batch_sizes=(1, 64), num_threads=num_threads
    )
    medians = {key: latency.median_ms for key, latency in measured.items()}
    fastest = min(("dense", "csr"), key=lambda name: medians[name, 1])
    row = row | {
        "latency_ms": medians[fastest, 1],
        "latency_format": fastest,
        "latency_machine": _machine_name(export.describe()),
        "latency_num_threads": num_threads,
        **{f"latency_{name}_b{size}_ms": value for (name, size), value in medians.items()},
    }
    _write_table(root, config, "trials", [row])
    return row


def load_network(config: RunConfig, folder: Path) -> tuple[nn.Module, Mapping[str, Any]]:
    """Return a checkpoint's model, on the CPU, and its masks."""
    model = build_model(config, data.build(config.data.name, config.data.params))
    network, masks = checkpoint.load_network(folder)
    model.load_state_dict(network)
    return model, masks


def _write(
    root: Path,
    config: RunConfig,
    history: History,
    *,
    status: str,
    error: str | None,
    extra: Mapping[str, Any],
    layers: Sequence[Row],
) -> Row:
    machine = export.describe()
    flat = config.flat()
    known = config_columns()
    row: Row = {
        "status": status,
        "error": error,
        "seed": config.seed,
        "requested_sparsity": config.method.params.get("sparsity", 0.0),
        "started_at": datetime.fromtimestamp(history.started_at, UTC),
        "finished_at": datetime.now(UTC),
        "wall_s": history.total_s(),
        **history.summary,
        **extra,
        **{name: _fitted(value, known[name]) for name, value in flat.items() if name in known},
        "hostname": machine["hostname"],
        "cpu": machine["cpu"],
        "num_cpus": machine["num_cpus"],
        "accelerator": machine["accelerator"],
        "python_version": machine["python_version"],
        "torch_version": machine["torch_version"],
        "ray_version": _version_of("ray"),
        "distsparse_version": __version__,
        "config": json.dumps(config.to_dict(), sort_keys=True),
    }
    _write_table(root, config, "steps", history.steps)
    _write_table(root, config, "rewires", history.rewires)
    _write_table(root, config, "layers", layers)
    # Last: whoever sees the trial's row finds its other tables complete.
    _write_table(root, config, "trials", [row])
    return row


def _write_table(root: Path, config: RunConfig, table: str, rows: Sequence[Row]) -> None:
    # A row that was read back carries these already.
    rows = [{k: v for k, v in row.items() if k not in ("study", "trial")} for row in rows]
    columns = config_columns() if table == "trials" else {}
    results.write(root, study=config.study, trial=config.key, table=table, rows=rows, config_columns=columns)


def _layer_row(weight: SparseWeight, mask: Any, flops: Mapping[str, int]) -> Row:
    nnz, num_weights = int(mask.sum()), mask.numel()
    return {
        "layer": weight.name,
        "kind": weight.kind,
        "shape": "x".join(str(n) for n in weight.shape),
        "num_weights": num_weights,
        "target": nnz,
        "nnz": nnz,
        "sparsity": 1 - nnz / num_weights,
        "density": nnz / num_weights,
        "flops": float(flops.get(weight.name, 0)),
        "dead_rows": int((~mask.any(1)).sum()),
    }


def _training_flops(config: RunConfig, history: History, flops: Mapping[str, int]) -> float:
    """Return the run's training FLOPs relative to dense, from the topology between every two updates."""
    method = build_method(config)
    dense_gradient_steps = method.gradient_window if "grad_abs" in method.update_needs else 0
    density: dict[int, dict[str, float]] = {}
    for row in history.rewires:
        density.setdefault(row["step"], {})[row["layer"]] = row["nnz"] / row["num_weights"]
    starts = [*density, history.summary["steps"]]
    segments = [
        export.Segment(
            end - start,
            min(dense_gradient_steps, end - start) if end in density else 0,
            export.inference_flops(flops, density[start]),
        )
        for start, end in itertools.pairwise(starts)
    ]
    return export.training_flops(segments)


def _arrow_type(hint: Any) -> pa.DataType:
    """Return the column type of an annotation; what is neither number nor bool is text (lists as JSON)."""
    if typing.get_origin(hint) is typing.Annotated:
        return _arrow_type(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [_arrow_type(arg) for arg in typing.get_args(hint) if arg is not type(None)]
        if all(option in (pa.int64(), pa.float64()) for option in options):
            return pa.float64() if pa.float64() in options else pa.int64()
        return options[0] if len(set(options)) == 1 else pa.string()
    simple: dict[Any, pa.DataType] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    return simple.get(hint, pa.string())


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """Return a value in its column's type, or None where it has another: ``config`` holds it in any case.

    Two components may give one keyword two types (``mlp.hidden`` is a list, another model's a number).
    """
    if value is None:
        return None
    if kind == pa.string():
        return value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, bool) or kind == pa.bool_():
        return value if isinstance(value, bool) and kind == pa.bool_() else None
    if isinstance(value, int) or (isinstance(value, float) and kind == pa.float64()):
        return value
    return None


def _machine_name(machine: Mapping[str, Any]) -> str:
    return f"{machine['hostname']} ({machine['cpu']}, {machine['num_cpus']} CPUs)"


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
