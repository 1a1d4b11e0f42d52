"""How much of a sweep is training: many short trials side by side, and what each costs beside its training.

    python benchmarks/sweep_throughput.py --trials 200 --cpus 2

Prints the share of wall time × cores inside training, from the start of the first trial to the end of the
last and for the whole command; the overhead of a trial (the time from a trial's end to its successor's on
the same core, less its training) as median and 90th percentile; and the driver's memory over time. The
trials train a small network on scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd

from distsparse.sweep import parse_space, sweep

STEPS_PER_S = 28 * 30
"""of a small network on one core of an Intel Xeon"""


def space_of(trials: int, seconds: float, workers: int) -> dict:
    """Return a space of trials that differ in alpha alone."""
    return {
        "study": "throughput",
        "search": "random",
        "num_samples": trials,
        "space": {"method.alpha": {"uniform": [0.1, 0.5]}},
        "base": {
            "model": {"name": "mlp", "hidden": [300, 100]},
            "data": {"name": "digits"},
            "train": {
                "epochs": max(1, round(seconds * STEPS_PER_S / 28)),
                "batch_size": 50,
                "evaluate_every": 10,
            },
            "checkpoint": {"every_steps": 1000},
            "latency": {"measure": False},
            "launch": {"num_threads": 1, "workers": workers},
        },
    }


class Memory:
    """Resident memory of this process, once a second."""

    def __init__(self) -> None:
        self.mib: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            status = Path("/proc/self/status").read_text()
            kib = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            self.mib.append(int(kib.split()[1]) / 1024)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def overheads(trials: pd.DataFrame, cores: int) -> np.ndarray:
    """Return, per trial, the seconds from the end of the one before on its core to its own, less training."""
    free = [trials["started_at"].min().timestamp()] * cores
    found = []
    for row in trials.sort_values("started_at").itertuples():
        # The core that was free first took the trial.
        core = int(np.argmin(free))
        ended = row.finished_at.timestamp()
        found.append(ended - free[core] - row.train_s)
        free[core] = ended
    return np.array(found)


def main() -> None:
    """Run the sweep and print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long a trial trains")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="data-parallel workers of a trial")
    arguments = parser.parse_args()
    cores = arguments.cpus // max(arguments.workers, 1)
    begun = time.time()
    with tempfile.TemporaryDirectory() as root, Memory() as memory:
        values = space_of(arguments.trials, arguments.seconds, arguments.workers)
        trials = sweep(parse_space(values), Path(root), num_cpus=arguments.cpus, verbose=False)
    wall_s = time.time() - begun
    assert (trials["status"] == "completed").all(), trials["error"].dropna().unique()

    span_s = trials["finished_at"].max().timestamp() - trials["started_at"].min().timestamp()
    train_s, found = trials["train_s"].sum(), overheads(trials, cores)
    each, inside, whole = trials["train_s"].median(), train_s / (cores * span_s), train_s / (cores * wall_s)
    print(f"{len(trials)} trials, training {each:.2f} s each (median), {cores} side by side")
    print(f"inside training: {inside:.1%} of cores × time between the first start and the last end")
    print(f"                 {whole:.1%} of cores × time of the whole command, {wall_s:.0f} s")
    median, slow = np.median(found), np.quantile(found, 0.9)
    print(f"overhead of a trial: median {median:.3f} s, 90th percentile {slow:.3f} s")
    places = np.linspace(0, len(memory.mib) - 1, 6).astype(int)
    print("driver's memory over time, MiB: " + " ".join(f"{memory.mib[i]:.0f}" for i in places))


if __name__ == "__main__":
    main()
