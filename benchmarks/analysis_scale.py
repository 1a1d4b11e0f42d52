"""How long reading and analysing a large study takes: `python benchmarks/analysis_scale.py --trials 100000`.

Makes a data set with every table, of random numbers in the form that real trials have (a real configuration,
all registered columns), as `distsparse compact` leaves it, and prints the seconds of each step.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from distsparse import results
from distsparse.config import parse
from distsparse.launch.columns import config_columns, fitted
from distsparse.results.compaction import write_parts
from distsparse.results.schema import schema

ROWS_PER_TRIAL = {"trials": 1, "steps": 10, "rewires": 10, "layers": 3, "latencies": 4}
SEEDS = 5
METHODS = ("rigl", "set", "static", "gmp")


def main() -> None:
    """Make the data set in a folder, and remove it afterwards unless it was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument(
        "--small", type=int, default=1_000, help="trials written as files of their own, and merged"
    )
    parser.add_argument("--output", type=Path, help="keep the data set here (default: a temporary folder)")
    args = parser.parse_args()
    root = args.output or Path(tempfile.mkdtemp(prefix="analysis-scale-"))
    try:
        run(root, args.trials, args.small)
    finally:
        if args.output is None:
            shutil.rmtree(root)


def run(root: Path, num_trials: int, num_small: int) -> None:
    """Make the data set and print the times."""
    with timed(f"write {num_small} trials, a file for each table", indent=False):
        write_small(root / "small", num_small)
    with timed(f"merge them ({num_small * len(results.TABLES)} files)", indent=False):
        results.compact(root / "small")
    for table in results.TABLES:
        write_parts(root / "large" / "study" / table, random_table(table, num_trials))
    print(f"{num_trials} trials x {len(results.TABLES)} tables")
    start = time.perf_counter()
    for table in results.TABLES:
        with timed(f"read {table}"):
            frame = results.load(root / "large", table)
        print(f"    {len(frame)} rows x {len(frame.columns)} columns")
        if table == "trials":
            trials = frame
    with timed("summarize"):
        summary = results.summarize(trials)
    print(f"    {len(summary)} configurations")
    print(f"  {'reading and summarising':<44} {time.perf_counter() - start:6.2f} s")
    with timed("pareto_front, 3 objectives"):
        front = results.pareto_front(trials, maximize=["accuracy", "sparsity"], minimize=["latency_ms"])
    print(f"    {len(front)} on the front")
    shell = trials.assign(**on_a_sphere(len(trials)))
    with timed("pareto_front, every trial on it"):
        front = results.pareto_front(shell, maximize=["accuracy", "sparsity"], minimize=["latency_ms"])
    assert len(front) == len(trials)


@contextmanager
def timed(what: str, *, indent: bool = True):
    """Print how long a block takes, and the processor time of all its threads."""
    start, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{'  ' if indent else ''}{what:<{44 if indent else 46}} {wall:6.2f} s  ({cpu:.2f} s of CPU)")


def configurations(num_trials: int) -> list[dict]:
    """Return a configuration per trial: five seeds each of methods, sparsities and learning rates."""
    rng = np.random.default_rng(0)
    bases = {name: parse({"study": "study", "method": {"name": name}}).to_dict() for name in METHODS}
    values = []
    for place in range(num_trials):
        if place % SEEDS == 0:
            sparsity, lr = (
                float(rng.choice([0.8, 0.9, 0.95, 0.98])),
                round(float(10 ** rng.uniform(-3, 0)), 6),
            )
        base = bases[METHODS[place // SEEDS % len(METHODS)]]
        base = {**base, "seed": place % SEEDS, "method": {**base["method"], "sparsity": sparsity}}
        values.append({**base, "optimizer": {**base["optimizer"], "lr": lr}})
    return values


def random_table(table: str, num_trials: int) -> pa.Table:
    """Return a table of random numbers, with the keys, settings and configurations of trials."""
    rng = np.random.default_rng(1)
    known = config_columns() if table == "trials" else {}
    fields = schema(table, known)
    num_rows = ROWS_PER_TRIAL.get(table, 1) * num_trials
    keys = np.array([f"{number * 0x9E3779B1 % 2**48:012x}" for number in range(num_trials)])
    columns = {field.name: random_column(field, num_rows, rng) for field in fields}
    columns["study"] = pa.array(["study"] * num_rows)
    columns["trial"] = pa.array(np.repeat(keys, num_rows // num_trials))
    if "step" in columns:
        columns["step"] = pa.array(np.tile(np.arange(num_rows // num_trials), num_trials))
    if table == "trials":
        configs = configurations(num_trials)
        flats = [dict(flatten(config)) for config in configs]
        columns |= {n: pa.array([fitted(f.get(n), k) for f in flats], k) for n, k in known.items()}
        columns["status"] = pa.array(["completed"] * num_rows)
        columns["seed"] = pa.array([config["seed"] for config in configs])
        columns["config"] = pa.array([json.dumps(config, sort_keys=True) for config in configs])
    return pa.table([columns[name] for name in fields.names], schema=fields)


def random_column(field: pa.Field, num_rows: int, rng: np.random.Generator) -> pa.Array:
    """Return random values of a column's type."""
    if field.type == pa.string():
        return pa.DictionaryArray.from_arrays(
            rng.integers(0, 4, num_rows), [f"{field.name}-{number}" for number in range(4)]
        ).cast(pa.string())
    if field.type == pa.bool_():
        return pa.array(rng.random(num_rows) < 0.5)
    if pa.types.is_timestamp(field.type):
        return pa.array(rng.integers(1_700_000_000_000_000, 1_800_000_000_000_000, num_rows)).cast(field.type)
    if field.type == pa.int64():
        return pa.array(rng.integers(0, 1_000_000, num_rows))
    return pa.array(rng.random(num_rows))


def flatten(values: dict, prefix: str = ""):
    """Yield the values of nested mappings by dotted name."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def write_small(root: Path, num_trials: int) -> None:
    """Write trials as a sweep does."""
    for table in results.TABLES:
        rows = random_table(table, num_trials).to_pylist()
        known = config_columns() if table == "trials" else {}
        each = len(rows) // num_trials
        for place in range(0, len(rows), each):
            key = rows[place]["trial"]
            part = rows[place : place + each]
            results.write(root, study="study", trial=key, table=table, rows=part, config_columns=known)


def on_a_sphere(num_points: int) -> dict[str, np.ndarray]:
    """Return objectives of which no point dominates another."""
    points = np.abs(np.random.default_rng(2).normal(size=(num_points, 3)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return {"accuracy": points[:, 0], "sparsity": points[:, 1], "latency_ms": -points[:, 2]}


if __name__ == "__main__":
    main()
