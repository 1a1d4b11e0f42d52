"""Print the table of a finished mnist-reference sweep beside the reference numbers.

distsparse sweep benchmarks/spaces/mnist_reference.yaml --output runs
python benchmarks/mnist_reference.py runs
"""

from __future__ import annotations

import sys

from distsparse import results

REFERENCE = {"dense": (98.30, 0.10), "rigl": (97.26, 0.17), "set": (96.94, 0.09), "static": (95.44, 0.23)}


def table(directory: str) -> str:
    """Return mean ± sd of the test accuracy in percent for each method, as Markdown."""
    trials = results.load(f"{directory}/mnist-reference")
    trials = trials[trials["status"] == "completed"]
    lines = [
        "| method | inputs | sparsity | test accuracy | reference | seeds | seconds per run |",
        "|---|---|---|---|---|---|---|",
    ]
    for normalized, inputs in ((True, "standardised"), (False, "in [0, 1]")):
        for name, (mean, sd) in REFERENCE.items():
            rows = trials[(trials["method.name"] == name) & (trials["data.normalize"] == normalized)]
            accuracy = 100 * rows["accuracy"]
            measured = f"{accuracy.mean():.2f} ± {accuracy.std():.2f}"
            lines.append(
                f"| {name} | {inputs} | {rows['sparsity'].mean():.3f} | {measured} "
                f"| {mean:.2f} ± {sd:.2f} | {len(rows)} | {rows['wall_s'].median():.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1] if len(sys.argv) > 1 else "runs"))
