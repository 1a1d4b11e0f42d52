"""The columns of every table: name, type and meaning, declared once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pyarrow as pa

SCHEMA_VERSION = 1

STRING = pa.string()
INT = pa.int64()
FLOAT = pa.float64()
BOOL = pa.bool_()
TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Column:
    """One column of a table; every column may hold nulls."""

    name: str
    type: pa.DataType
    description: str


KEY = (
    Column("study", STRING, "name of the study, which is also the folder"),
    Column("trial", STRING, "key of the trial: 12 hexadecimal characters, a hash of its configuration"),
)

IDENTITY = (
    *KEY,
    Column("status", STRING, "`completed`, `failed`, or `stopped` (by ASHA)"),
    Column("error", STRING, "why the trial failed; null when it completed"),
    Column("seed", INT, "seed of the initial weights, the masks and the order of the data"),
)

OUTCOME = (
    Column("accuracy", FLOAT, "accuracy on the test set at the end, in [0, 1]"),
    Column("loss", FLOAT, "loss on the test set at the end"),
    Column("validation_accuracy", FLOAT, "accuracy on the validation set at the end, in [0, 1]"),
    Column("validation_loss", FLOAT, "loss on the validation set at the end"),
    Column("best_validation_accuracy", FLOAT, "highest validation accuracy of any evaluation, in [0, 1]"),
    Column("train_loss", FLOAT, "training loss at the end"),
    Column("requested_sparsity", FLOAT, "sparsity asked for: inactive fraction of the sparsified weights"),
    Column("sparsity", FLOAT, "sparsity reached: inactive fraction of the sparsified weights"),
    Column("model_sparsity", FLOAT, "inactive fraction of all parameters, those never sparsified included"),
    Column("nnz", INT, "active weights among the sparsified ones"),
    Column("num_parameters", INT, "parameters of the model, active or not"),
    Column("num_sparsified_parameters", INT, "parameters that a mask covers"),
    Column("inference_flops", FLOAT, "FLOPs of a forward pass relative to the dense model"),
    Column("training_flops", FLOAT, "FLOPs of the whole training relative to dense training"),
    Column("dense_inference_flops", FLOAT, "FLOPs of one sample's forward pass through the dense model"),
    Column("num_updates", INT, "mask updates over the run"),
    Column("num_dropped", INT, "weights dropped over the run"),
    Column("num_grown", INT, "weights grown over the run"),
)

COST = (
    Column("steps", INT, "optimizer steps"),
    Column("epochs", FLOAT, "passes over the training set"),
    Column("stopped_early", BOOL, "whether lr_schedule fine_tuning ended the run before its last epoch"),
    Column("num_lr_reductions", INT, "plateaus at which fine_tuning reduced the rate; null without it"),
    Column("best_monitored", FLOAT, "best value of what fine_tuning monitors; null without it"),
    Column("samples_per_s", FLOAT, "training samples per second of training steps, all workers together"),
    Column("gradient_bytes", FLOAT, "bytes of gradients that one worker sent; null for one worker"),
    Column("dense_gradient_bytes", FLOAT, "bytes that reducing all gradients in full would have sent"),
    Column("steps_per_s", FLOAT, "optimizer steps per second of training steps"),
    Column("wall_s", FLOAT, "seconds since the first step, over all processes that a resumed run had"),
    Column("train_s", FLOAT, "of it in training steps: without evaluation and checkpoints"),
    Column("world_size", INT, "number of workers that trained together"),
    Column("started_at", TIME, "when the trial started"),
    Column("finished_at", TIME, "when the trial finished"),
    Column("latency_ms", FLOAT, "measured time of one sample, the faster of dense and CSR, in milliseconds"),
    Column("latency_format", STRING, "the faster one: `dense` or `csr`"),
    Column("latency_dense_b1_ms", FLOAT, "dense weights, a batch of 1, in milliseconds"),
    Column(
        "latency_csr_b1_ms",
        FLOAT,
        "layers of at least 80 % sparsity in CSR, a batch of 1; null if there is none",
    ),
    Column("latency_dense_b64_ms", FLOAT, "dense weights, a batch of 64, in milliseconds"),
    Column(
        "latency_csr_b64_ms",
        FLOAT,
        "layers of at least 80 % sparsity in CSR, a batch of 64; null if there is none",
    ),
    Column("latency_machine", STRING, "machine on which the latencies were measured"),
    Column("latency_num_threads", INT, "threads with which the latencies were measured"),
)

PROVENANCE = (
    Column("hostname", STRING, "host of the first worker"),
    Column("cpu", STRING, "model of its processor"),
    Column("accelerator", STRING, "model of its accelerator; null on a processor alone"),
    Column("num_cpus", INT, "processor cores available to it"),
    Column("python_version", STRING, "version of Python"),
    Column("torch_version", STRING, "version of PyTorch"),
    Column("ray_version", STRING, "version of Ray; null without Ray"),
    Column("distsparse_version", STRING, "version of distsparse"),
    Column("checkpoint", STRING, "path of the trained network"),
    Column("config", STRING, "the whole configuration as JSON"),
)

STEPS = (
    *KEY,
    Column("step", INT, "optimizer step, counted from 1"),
    Column("epoch", FLOAT, "passes over the training set so far"),
    Column("train_loss", FLOAT, "training loss, averaged over the workers"),
    Column("learning_rate", FLOAT, "learning rate of the step"),
    Column("grad_norm", FLOAT, "gradient norm before clipping; null when gradients are not clipped"),
    Column(
        "samples_per_s",
        FLOAT,
        "training samples per second of training steps since the row before, all workers together",
    ),
    Column("elapsed_s", FLOAT, "seconds since training started"),
    Column("gradient_bytes", FLOAT, "bytes of gradients that one worker sent so far; null for one worker"),
    Column("dense_gradient_bytes", FLOAT, "bytes that reducing all gradients in full would have sent"),
    Column("sparsity", FLOAT, "inactive fraction of the sparsified weights"),
    Column("validation_accuracy", FLOAT, "in [0, 1]; null except at evaluations"),
    Column("validation_loss", FLOAT, "null except at evaluations"),
    Column("test_accuracy", FLOAT, "in [0, 1]; null except at evaluations"),
    Column("test_loss", FLOAT, "null except at evaluations"),
)

REWIRES = (
    *KEY,
    Column("step", INT, "optimizer step of the mask update"),
    Column("layer", STRING, "name of the weight"),
    Column("fraction", FLOAT, "dropped fraction of the layer's active weights"),
    Column("num_dropped", INT, "weights dropped"),
    Column("num_grown", INT, "weights grown"),
    Column("nnz", INT, "active weights after the update"),
    Column("num_weights", INT, "weights of the layer, active or not"),
    Column("digest", STRING, "digest of the mask after the update, hexadecimal; equal on every worker"),
)

LAYERS = (
    *KEY,
    Column("layer", STRING, "name of the weight"),
    Column("kind", STRING, "type of the module that holds it, such as `Linear` or `Conv2d`"),
    Column("shape", STRING, "shape of the weight, such as `300x784`"),
    Column("num_weights", INT, "weights of the layer, active or not"),
    Column("target", INT, "active weights asked for"),
    Column("nnz", INT, "active weights"),
    Column("sparsity", FLOAT, "inactive fraction"),
    Column("density", FLOAT, "active fraction"),
    Column("flops", FLOAT, "FLOPs of one sample through the dense layer"),
    Column("dead_rows", INT, "rows (neurons, channels) with no active weight"),
)

LINEAGE = (
    *KEY,
    Column("step", INT, "optimizer step after which the settings held; 0 is the start"),
    Column("settings", STRING, "what the sweep perturbs, as JSON by dotted name, from this step on"),
    Column("source", STRING, "trial whose state at this step was taken over; null where it kept its own"),
    Column("metric", STRING, "metric by which the population was compared; null at the start"),
    Column("score", FLOAT, "the trial's own metric at this step, before the exchange"),
    Column("source_score", FLOAT, "the source's metric at this step; null where there is no source"),
)

LATENCIES = (
    *KEY,
    Column("format", STRING, "how the weights are stored: `dense` or `csr`"),
    Column("batch_size", INT, "samples of one call"),
    Column("num_threads", INT, "threads of the call"),
    Column("dtype", STRING, "of weights and inputs: `float32` or `bfloat16`"),
    Column("p50_ms", FLOAT, "median time of one call, in milliseconds"),
    Column("p10_ms", FLOAT, "a tenth of the calls took less"),
    Column("p90_ms", FLOAT, "a tenth of the calls took more"),
    Column("num_repeats", INT, "calls that were timed"),
    Column("stable", BOOL, "whether the medians had settled; false on a machine that is busy, or too slow"),
    Column("hostname", STRING, "host that measured"),
    Column("cpu", STRING, "model of its processor"),
    Column("num_cpus", INT, "processor cores available to the measurement"),
    Column("accelerator", STRING, "model of its accelerator; null on a processor alone"),
    Column("torch_version", STRING, "version of PyTorch"),
    Column("measured_at", TIME, "when it was measured"),
)

TABLES: Mapping[str, tuple[Column, ...]] = MappingProxyType(
    {
        "trials": (*IDENTITY, *OUTCOME, *COST, *PROVENANCE),
        "steps": STEPS,
        "rewires": REWIRES,
        "layers": LAYERS,
        "lineage": LINEAGE,
        "latencies": LATENCIES,
    }
)

GRAIN: Mapping[str, str] = MappingProxyType(
    {
        "trials": "One row per trial.",
        "steps": "One row per logged optimizer step.",
        "rewires": "One row per mask update and layer.",
        "layers": "One row per sparsified weight at the end of the trial.",
        "lineage": "One row per comparison within a population (`pbt`), and one for its start. A trial that "
        "took over another's state has that one's `steps`, `rewires` and times up to there.",
        "latencies": "One row per format, batch size, thread count and machine that measured the network.",
    }
)


def schema(table: str, config_columns: Mapping[str, pa.DataType] = MappingProxyType({})) -> pa.Schema:
    """Return the Arrow schema of a table; config columns (dotted names) follow the identity of a trial.

    Descriptions are the fields' metadata, version and table the schema's.

    Raises:
        ValueError: no such table.
    """
    assert table == "trials" or not config_columns, f"config columns belong to trials, not to {table}"
    columns = columns_of(table)
    clash = config_columns.keys() & {column.name for column in columns}
    assert not clash, f"config columns that are columns of {table} already: {sorted(clash)}"
    fields = [pa.field(c.name, c.type, metadata={"description": c.description}) for c in columns]
    config = [pa.field(name, kind) for name, kind in config_columns.items()]
    fields[len(IDENTITY) : len(IDENTITY)] = config
    metadata = {"distsparse_schema_version": str(SCHEMA_VERSION), "distsparse_table": table}
    return pa.schema(fields, metadata=metadata)


def columns_of(table: str) -> tuple[Column, ...]:
    """Return the fixed columns of a table.

    Raises:
        ValueError: no such table.
    """
    if table not in TABLES:
        raise ValueError(f"unknown table {table!r}; allowed: {', '.join(TABLES)}")
    return TABLES[table]


def to_markdown() -> str:
    """Return the page that documents the tables (`docs/results.md`)."""
    lines = [_INTRODUCTION.format(version=SCHEMA_VERSION)]
    for table, columns in TABLES.items():
        lines += [f"## {table}", "", GRAIN[table], "", "| column | type | meaning |", "|---|---|---|"]
        for column in columns:
            lines.append(f"| `{column.name}` | {column.type} | {column.description} |")
            if table == "trials" and column == IDENTITY[-1]:
                lines.append(
                    "| `model.name`, `method.delta_T`, … | any | the configuration, by dotted name |"
                )
        lines.append("")
    return "\n".join(lines)


_INTRODUCTION = """\
# Results

Every trial writes one Parquet file into each table of its study:

```
<results>/<study>/<table>/<trial>.parquet
```

A file appears under its name only when it is complete; the row in `trials` is written last. Names that begin
with a dot are files still being written, which every Parquet reader passes over. `distsparse compact` merges
the files of large studies into a few, `merged-*.parquet`; every reader sees the same rows.

Fractions are in [0, 1], durations end in `_s` or `_ms`, times are UTC. The version of this schema is
{version}, and every file carries its version.

pandas alone reads a table:

```python
import pandas

trials = pandas.read_parquet("<results>/<study>/trials")
```

A results folder can be a URI of anything that pyarrow opens, such as `s3://bucket/results`, for `write` and
for all that reads. A file appears there when its upload is complete. Compaction needs a local disk.

`load` does a little more: it joins studies that were run with different methods installed, keeps integers
with gaps as integers, drops configuration columns that no trial uses, and gives every value of `config` a
column.

```python
from distsparse.results import load, pareto_front

trials = load("<results>")  # or a study, or one table's folder
curves = load("<results>", table="steps")
best = pareto_front(trials, maximize=["accuracy", "sparsity"], minimize=["latency_ms"])
```

## Analysis

Every function takes a frame and returns one; the command beside it prints the same.

| function | command | answer |
|---|---|---|
| `load` | `results` | the trials, or another table |
| `summarize` | `summary` | each configuration over its seeds: mean, sd, bootstrap interval |
| `pareto_front` | `pareto` | the trials that no other one beats |
| `front_of_means` | `pareto --means` | the front of means over seeds, and how sure each point is |
| `hypervolume`, `knee_point` | `pareto` | the front as one number, and its knee |
| `best_under` | `best --at-most latency_ms=2` | the best trials within limits |
| `compare` | `compare` | paired tests between methods, with Holm's correction |
| `importance` | `importance` | which setting matters (permutation importance in a random forest) |
| `write_report` | `report` | all of it as one interactive HTML file (needs plotly: `distsparse[report]`) |
| `sql` | `results --sql` | SQL over the tables (needs DuckDB: `distsparse[sql]`) |

```python
from distsparse.results import best_under, compare, sql, summarize

table = summarize(trials, ["accuracy", "latency_ms"])
best = best_under(trials, {{"latency_ms": 2.0}}, maximize="validation_accuracy")
tests = compare(trials, "accuracy", within=["requested_sparsity"])
slow = sql('select "method.name", max(train_s) from trials group by all', "<results>")
```

A choice by the best of many test accuracies flatters what it chose: choose by `validation_accuracy`, which a
run has where its data has a validation split, and read `accuracy` for what was chosen.
"""
