"""Latency of a trained network, measured when nothing else runs on the cores."""

from __future__ import annotations

from pathlib import Path

from distsparse import data, export
from distsparse.config import RunConfig
from distsparse.launch.record import load_network, write_table
from distsparse.train.history import Row


def record_latency(root: Path, config: RunConfig, row: Row) -> tuple[Row, str | None]:
    """Measure a completed trial's network and put the numbers into its row.

    A network of which no layer is sparse enough for CSR has dense numbers only.

    Returns:
        The row, and why it could not be measured (a custom model may not survive conversion), or None.
    """
    num_threads = config.latency.num_threads
    try:
        model, _ = load_network(config, Path(row["checkpoint"]))
        dataset = data.build(config.data.name, config.data.params)
        measured = export.compare(
            model.float().eval(), dataset.input_shape, batch_sizes=(1, 64), num_threads=num_threads
        )
    except Exception as error:  # the trial itself is well
        return row, f"latency not measured: {type(error).__name__}: {' '.join(str(error).split())}"
    medians = {key: latency.median_ms for key, latency in measured.items()}
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
