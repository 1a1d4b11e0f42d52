"""Does a search that learns find a better front than chance, with as many trials?

    python benchmarks/multi_objective.py --output runs --samples 40 --seeds 5

Each search chooses as many points of one space, on scikit-learn's digits: validation accuracy against FLOPs.
Prints the hypervolume that each front dominates (the share of the box between the reference, 80 % accuracy
at 30 % of the dense FLOPs, and the ideal), mean and standard deviation over seeds of the search. The
networks' own seed is one throughout. Resumable. Cost: samples × seeds × 4 trials of about a second.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from distsparse import results
from distsparse.launch.session import connected
from distsparse.sweep import parse_space, sweep

SEARCHES = ("random", "sobol", "tpe", "nsga2")
REFERENCE = {"validation_accuracy": 0.8, "inference_flops": 0.3}
BOX = (1 - REFERENCE["validation_accuracy"]) * REFERENCE["inference_flops"]


def space_of(search: str, seed: int, samples: int) -> dict[str, Any]:
    """Return a space that mixes methods, their parameters, the optimizer's and the network's width."""
    values: dict[str, Any] = {
        "study": f"{search}-{seed}",
        "search": search,
        "search_seed": seed,
        "num_samples": samples,
        "space": {
            "method.name": {"choice": ["rigl", "set", "gmp", "static"]},
            "method.sparsity": {"uniform": [0.7, 0.99]},
            "method.delta_T": {"choice": [10, 20, 50]},
            "method.alpha": {"uniform": [0.1, 0.5]},
            "method.allocation": {"choice": ["uniform", "er", "erk"]},
            "optimizer.lr": {"loguniform": [0.01, 0.5]},
        },
        "base": {
            "model": {"name": "mlp", "hidden": [300, 100]},
            "data": {"name": "digits", "validation": 300},
            "train": {"epochs": 15, "batch_size": 50, "evaluate_every": 15},
            "checkpoint": {"every_steps": 1000},
            "latency": {"measure": False},
            "launch": {"num_threads": 1},
        },
    }
    if search not in ("random", "sobol"):
        values["objectives"] = {"validation_accuracy": "max", "inference_flops": "min"}
    return values


def main() -> None:
    """Run every search with every seed, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=2)
    arguments = parser.parse_args()
    volumes: dict[str, list[float]] = {search: [] for search in SEARCHES}
    with connected(num_cpus=arguments.cpus):
        for seed in range(arguments.seeds):
            for search in SEARCHES:
                values = space_of(search, seed, arguments.samples)
                trials = sweep(parse_space(values), Path(arguments.output), verbose=False)
                volume = results.hypervolume(
                    trials,
                    reference=REFERENCE,
                    maximize=["validation_accuracy"],
                    minimize=["inference_flops"],
                )
                volumes[search].append(volume / BOX)
    print(f"| search | hypervolume, mean ± sd of {arguments.seeds} seeds, {arguments.samples} trials each |")
    print("|---|---|")
    for search, found in volumes.items():
        print(f"| {search} | {np.mean(found):.4f} ± {np.std(found, ddof=1):.4f} |")


if __name__ == "__main__":
    main()
