"""Latency of a trained network, measured when nothing else runs on the cores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from distsparse import data, export, results
from distsparse.config import RunConfig
from distsparse.launch.record import load_network, trial_folder, write_table
from distsparse.train import storage
from distsparse.train.history import Row

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SAME_MEASUREMENT = ("format", "batch_size", "num_threads", "dtype", "hostname", "cpu", "accelerator")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under which latency is measured: every combination."""

    batch_sizes: Sequence[int] = (1, 64)
    num_threads: Sequence[int] = (1,)
    dtypes: Sequence[str] = ("float32",)
    """CSR is measured in float32 alone."""


def record_latency(root: Path, config: RunConfig, row: Row) -> tuple[Row, str | None]:
    """Measure a completed trial's network and put the numbers into its row and into ``latencies``.

    A network of which no layer is sparse enough for CSR has dense numbers only.

    Returns:
        The row, and why it could not be measured (a custom model may not survive conversion), or None.
    """
    num_threads = config.latency.num_threads
    try:
        measured = measure_trial(root, config, row, Conditions(num_threads=(num_threads,)))
    except Exception as error:  # the trial itself is well
        return row, f"latency not measured: {type(error).__name__}: {' '.join(str(error).split())}"
    medians = {(found["format"], found["batch_size"]): found["p50_ms"] for found in measured}
    fastest = min((name for name, size in medians if size == 1), key=lambda name: medians[name, 1])
    machine = export.describe()
    row = row | {
        "latency_ms": medians[fastest, 1],
        "latency_format": fastest,
        "latency_machine": f"{machine['hostname']} ({machine['cpu']}, {machine['num_cpus']} CPUs)",
        "latency_num_threads": num_threads,
        **{f"latency_{name}_b{size}_ms": value for (name, size), value in medians.items()},
    }
    write_table(root, config, "trials", [row])
    return row, None


def measure_trial(root: Path, config: RunConfig, row: Row, conditions: Conditions) -> list[Row]:
    """Measure a completed trial's network here, and add the rows to ``latencies``; return them.

    They replace those of an earlier measurement on this machine under the same conditions; other machines'
    stay. Whatever the data's or the model's own code raises is passed on.
    """
    dataset = data.build(config.data.name, config.data.params)
    with storage.reading(_network(root, config, row)) as folder:
        model, _ = load_network(config, folder, dataset)
    machine = export.describe()
    measured: list[Row] = []
    for num_threads in conditions.num_threads:
        for dtype in conditions.dtypes:
            latencies = export.compare(
                model.to(DTYPES[dtype]).eval(),
                dataset.input_shape,
                batch_sizes=conditions.batch_sizes,
                num_threads=num_threads,
                dtype=DTYPES[dtype],
            )
            measured += [
                {
                    "format": name,
                    "batch_size": size,
                    "num_threads": num_threads,
                    "dtype": dtype,
                    "p50_ms": latency.median_ms,
                    "p10_ms": latency.p10_ms,
                    "p90_ms": latency.p90_ms,
                    "num_repeats": latency.num_repeats,
                    "stable": latency.stable,
                    "hostname": machine["hostname"],
                    "cpu": machine["cpu"],
                    "num_cpus": machine["num_cpus"],
                    "accelerator": machine["accelerator"] or None,
                    "torch_version": machine["torch_version"],
                    "measured_at": datetime.now(UTC),
                }
                for (name, size), latency in latencies.items()
            ]
    earlier = results.read_trial(root, study=config.study, trial=config.key, table="latencies") or []
    replaced = {_conditions(found) for found in measured}
    kept = [found for found in earlier if _conditions(found) not in replaced]
    write_table(root, config, "latencies", [*kept, *measured])
    return measured


def measure_again(
    root: Path, configs: Sequence[tuple[RunConfig, Row]], conditions: Conditions
) -> Iterator[tuple[RunConfig, list[Row], str | None]]:
    """Measure trials one after another; yield each with its new rows, or with why there are none."""
    for config, row in configs:
        try:
            yield config, measure_trial(root, config, row, conditions), None
        except Exception as error:  # the other trials can still be measured
            yield config, [], f"{type(error).__name__}: {' '.join(str(error).split())}"


def _conditions(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in _SAME_MEASUREMENT)


def _network(root: Path, config: RunConfig, row: Row) -> str:
    """Return the place of a trained network; results may have been moved since, or copied."""
    recorded: str = row["checkpoint"]
    if config.checkpoint.storage is not None or Path(recorded).is_dir():
        return recorded
    return storage.join(trial_folder(root, config), storage.name_of(recorded))
