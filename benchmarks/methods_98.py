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
    trials = trials[trials["status"] == "completed"].fillna({"method.allocation": "global"})
    lines = ["| method | allocation | sparsity | test accuracy | seeds |", "|---|---|---|---|---|"]
    groups = trials.groupby(["method.name", "method.allocation"])
    for _, rows in sorted(groups, key=lambda group: -group[1]["accuracy"].mean()):
        accuracy = 100 * rows["accuracy"]
        first = rows.iloc[0]
        lines.append(
            f"| {first['method.name']} | {first['method.allocation']} | {rows['sparsity'].mean():.4f} "
            f"| {accuracy.mean():.2f} ± {accuracy.std():.2f} | {len(rows)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1] if len(sys.argv) > 1 else "runs"))
