"""Measured latencies as a reader compares them: formats side by side, one line for each way of measuring."""

from __future__ import annotations

import pandas as pd

MEASURED = ("batch_size", "num_threads", "dtype", "machine")
"""what two latencies must share to be compared"""
TRIAL = ("study", "trial")
PERCENTILES = ("p10_ms", "p50_ms", "p90_ms")


def measured(latencies: pd.DataFrame) -> pd.DataFrame:
    """Return rows of the ``latencies`` table with a column ``machine``: of each measurement the newest."""
    processor = latencies["accelerator"].astype("string").fillna(latencies["cpu"].astype("string"))
    parts = [latencies["hostname"], processor, latencies["num_cpus"]]
    host, processor, cores = (part.astype("string").fillna("?") for part in parts)
    frame = latencies.assign(machine=host + ": " + processor + " (" + cores + " CPUs)")
    frame = frame.sort_values("measured_at", kind="stable", na_position="first")
    frame = frame.drop_duplicates([*TRIAL, "format", *MEASURED], keep="last")
    return frame.sort_values([*TRIAL, *MEASURED, "format"], kind="stable", ignore_index=True)


def side_by_side(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each trial and way of measuring, with each format's percentiles in columns of its own.

    A format's ``speed_up`` is the dense median divided by its own. ``stable`` is false where the median of
    a format had not settled, and null where that is not known.

    Args:
        rows: from :func:`measured`.
    """
    keys = [*TRIAL, *MEASURED]
    table = rows[keys].drop_duplicates(ignore_index=True)
    formats = sorted(rows["format"].unique(), key=lambda name: (name != "dense", name))
    for name in formats:
        part = rows.loc[rows["format"] == name, [*keys, *PERCENTILES]]
        part = part.rename(columns={column: f"{name} {column}" for column in PERCENTILES})
        table = table.merge(part, on=keys, how="left")
        if name != "dense" and "dense" in formats:
            table[f"{name} speed_up"] = table["dense p50_ms"] / table[f"{name} p50_ms"]
    settled = rows.assign(stable=rows["stable"].astype("boolean")).groupby(keys, dropna=False)["stable"]
    return table.merge(settled.min().reset_index(), on=keys, how="left")
