"""Print the table of a finished methods-98 sweep.

distsparse sweep benchmarks/spaces/methods_98.yaml --output runs
python benchmarks/methods_98.py runs
"""

from __future__ import annotations

import sys

from distsparse import results


def table(directory: str) -> str:
    """Return mean ± sd of the test accuracy in percent for each method and allocation, as Markdown."""
    trials = results.load(f"{directory}/methods-98")
    trials = trials[trials["status"] == "completed"]
    lines = ["| method | allocation | sparsity | test accuracy | seeds |", "|---|---|---|---|---|"]
    groups = trials.groupby(["method.name", "method.allocation"], dropna=False)["accuracy"].mean()
    for name, allocation in groups.sort_values(ascending=False).index:
        same = trials["method.allocation"].eq(allocation) | trials["method.allocation"].isna() & (
            allocation != allocation
        )
        rows = trials[(trials["method.name"] == name) & same]
        accuracy = 100 * rows["accuracy"]
        shown = allocation if allocation == allocation else "global"
        lines.append(
            f"| {name} | {shown} | {rows['sparsity'].mean():.4f} "
            f"| {accuracy.mean():.2f} ± {accuracy.std():.2f} | {len(rows)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1] if len(sys.argv) > 1 else "runs"))
