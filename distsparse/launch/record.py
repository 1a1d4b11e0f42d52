"""From a finished (or failed) run to its rows in the results' tables."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distsparse import core, data, export, results
from distsparse.config import RunConfig
from distsparse.core import SparseWeight, find_weights
from distsparse.data import Dataset
from distsparse.launch.columns import config_columns, fitted
from distsparse.train import checkpoint, storage
from distsparse.train.build import build_method, build_model
from distsparse.train.history import History, Row
from distsparse.version import __version__


def trial_folder(root: Path, config: RunConfig) -> Path:
    """Return a trial's folder below the results: of its checkpoints, if ``checkpoint.storage`` is null."""
    return root / config.study / "checkpoints" / config.key


def checkpoints_of(root: Path, config: RunConfig) -> str:
    """Return the place of a trial's checkpoints."""
    if config.checkpoint.storage is None:
        return str(trial_folder(root, config))
    return storage.join(config.checkpoint.storage, config.study, config.key)


def finished_row(root: Path, config: RunConfig) -> Row | None:
    """Return a trial's row if it completed."""
    rows = results.read_trial(root, study=config.study, trial=config.key)
    return rows[0] if rows and rows[0]["status"] == "completed" else None


def discard(root: Path, config: RunConfig, *, checkpoints: bool) -> None:
    """Remove a trial's rows, which would speak of what a new run replaces, and maybe its checkpoints."""
    results.remove_trial(root, study=config.study, trial=config.key)
    if checkpoints:
        storage.remove(checkpoints_of(root, config))


def record_completed(
    root: Path, config: RunConfig, history: History, saved: str, *, dataset: Dataset | None = None
) -> Row:
    """Write all rows of a completed run from its last checkpoint; return the trial's row.

    ``dataset`` is the configured one, where it is at hand.
    """
    dataset = dataset or data.build(config.data.name, config.data.params)
    with storage.reading(saved) as folder:
        model, masks = load_network(config, folder, dataset)
        targets = checkpoint.plain_values(folder)["sparsifier"]["targets"]
    weights = find_weights(model, include=config.sparsify.include, exclude=config.sparsify.exclude)
    flops = export.layer_flops(model.float(), dataset.input_shape)  # an fp64 run's too
    layers = [_layer_row(weight, masks[weight.name], targets[weight.name], flops) for weight in weights]
    num_weights = sum(row["num_weights"] for row in layers)
    nnz = sum(row["nnz"] for row in layers)
    num_parameters = sum(p.numel() for p in model.parameters())
    row: Row = {
        "sparsity": 1 - nnz / num_weights,
        "model_sparsity": (num_weights - nnz) / num_parameters,
        "nnz": nnz,
        "num_parameters": num_parameters,
        "num_sparsified_parameters": num_weights,
        "checkpoint": saved,
    }
    # A weight that a custom model applies by itself is not counted, and half a count would be a wrong one.
    if all(row["flops"] for row in layers):
        density = {row["layer"]: row["density"] for row in layers}
        row["inference_flops"] = export.inference_flops(flops, density)
        row["training_flops"] = _training_flops(config, history, flops)
        row["dense_inference_flops"] = float(sum(flops.values()))
    row = {**history.summary, **row}
    row = _row(config, history, status="completed", error=None, extra=row)
    _write(root, config, history, row, layers=layers)
    return row


def record_failed(root: Path, config: RunConfig, history: History, error: str) -> Row:
    """Write the rows that a failed run leaves; return the trial's row, null in what only an end has.

    On a disk that is full, or gone, the row is returned without having been written.
    """
    history.pause_clock()
    so_far = {
        "steps": history.steps[-1]["step"] if history.steps else 0,
        "num_updates": len({row["step"] for row in history.rewires if row["step"] > 0}),
    }
    reason = " ".join(error.split())
    row = _row(config, history, status="failed", error=reason, extra=so_far)
    with suppress(OSError):  # maybe the very reason of the failure, which the caller still hears of
        _write(root, config, history, row, layers=[])
    return row


def record_stopped(root: Path, config: RunConfig, history: History) -> Row:
    """Write the rows of a run that was ended because others did better; return the trial's row."""
    row = _row(config, history, status="stopped", error=None, extra=history.summary)
    _write(root, config, history, row, layers=[])
    return row


def saved_by_ray(place: str | Path) -> list[str]:
    """Return the checkpoints of a trial on Ray Train workers, oldest first: their names are times."""
    return [saved for saved in storage.folders(place) if storage.name_of(saved).startswith("checkpoint_")]


def last_history(place: str | Path) -> History:
    """Return what the newest readable checkpoint of a trial knows; an empty history where there is none."""
    for saved in reversed(storage.folders(place)):
        try:
            return restored_history(saved)
        except ValueError:
            continue
    return History()


def restored_history(saved: str) -> History:
    """Return the history in a checkpoint.

    Raises:
        ValueError: the checkpoint cannot be read.
    """
    history = History()
    with storage.reading(saved) as folder:
        history.restore(checkpoint.plain_values(folder)["history"])
    return history


def load_network(
    config: RunConfig, folder: Path, dataset: Dataset | None = None
) -> tuple[nn.Module, Mapping[str, Any]]:
    """Return a checkpoint's model, on the CPU, and its masks; ``dataset`` is the configured one, if there."""
    model = build_model(config, dataset or data.build(config.data.name, config.data.params))
    network, masks = core.load_network(folder)
    model.load_state_dict(network)
    return model, masks


def _row(
    config: RunConfig, history: History, *, status: str, error: str | None, extra: Mapping[str, Any]
) -> Row:
    """Return a trial's row of the ``trials`` table."""
    machine = history.machine or export.describe()
    flat = config.flat()
    known = config_columns()
    return {
        "status": status,
        "error": error,
        "seed": config.seed,
        "requested_sparsity": config.method.params.get("sparsity", extra.get("sparsity")),
        "started_at": datetime.fromtimestamp(history.started_at, UTC),
        "finished_at": datetime.now(UTC),
        "wall_s": history.wall_s,
        "train_s": history.train_s,
        **extra,
        **{name: fitted(value, known[name]) for name, value in flat.items() if name in known},
        "hostname": machine["hostname"],
        "cpu": machine["cpu"],
        "num_cpus": machine["num_cpus"],
        "accelerator": machine["accelerator"] or None,
        "python_version": machine["python_version"],
        "torch_version": machine["torch_version"],
        "ray_version": sys.modules["ray"].__version__ if "ray" in sys.modules else None,
        "distsparse_version": __version__,
        "config": json.dumps(config.to_dict(), sort_keys=True),
    }


def _write(root: Path, config: RunConfig, history: History, row: Row, *, layers: Sequence[Row]) -> None:
    """Write a trial's rows of all tables."""
    write_table(root, config, "steps", history.steps)
    write_table(root, config, "rewires", history.rewires)
    write_table(root, config, "layers", layers)
    # Last: whoever sees the trial's row finds its other tables complete.
    write_table(root, config, "trials", [row])


def write_table(root: Path, config: RunConfig, table: str, rows: Sequence[Row]) -> None:
    """Write a trial's rows of one table; a row that was read back may be written again."""
    rows = [{k: v for k, v in row.items() if k not in ("study", "trial")} for row in rows]
    columns = config_columns() if table == "trials" else {}
    results.write(root, study=config.study, trial=config.key, table=table, rows=rows, config_columns=columns)


def _layer_row(weight: SparseWeight, mask: Tensor, target: int, flops: Mapping[str, int]) -> Row:
    nnz, num_weights = int(mask.sum()), mask.numel()
    return {
        "layer": weight.name,
        "kind": weight.kind,
        "shape": "x".join(str(n) for n in weight.shape),
        "num_weights": num_weights,
        "target": target,
        "nnz": nnz,
        "sparsity": 1 - nnz / num_weights,
        "density": nnz / num_weights,
        "flops": float(flops.get(weight.name, 0)),
        "dead_rows": int((~mask.any(1)).sum()),
    }


def _training_flops(config: RunConfig, history: History, flops: Mapping[str, int]) -> float:
    """Return the run's training FLOPs relative to one dense training, from the topology between updates."""
    method = build_method(config)
    needs = method.update_needs
    dense_gradient_steps = method.gradient_window if needs & {"grad", "grad_abs"} else 0
    every_step = "grad_ema" in needs
    density: dict[int, dict[str, float]] = {}
    for row in history.rewires:
        density.setdefault(row["step"], {})[row["layer"]] = row["nnz"] / row["num_weights"]
    starts = [*density, history.summary["steps"]]
    segments = [
        export.Segment(
            end - start,
            end - start if every_step else min(dense_gradient_steps, end - start) if end in density else 0,
            export.inference_flops(flops, density[start]),
        )
        for start, end in itertools.pairwise(starts)
    ]
    rounds = 1 + (method.rounds - 1) * (1 - method.rewind_to)
    return export.training_flops(segments) * rounds
