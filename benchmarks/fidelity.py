"""Train the comparison table of the methods and write it: benchmarks/fidelity.parquet and docs/fidelity.md.

python benchmarks/fidelity.py --output runs     (again after an interruption: finished trials are kept)

MNIST must be in ``$DISTSPARSE_DATA/mnist``, see examples/mnist.yaml.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import pandas as pd

from distsparse import results
from distsparse.cli.files import read_yaml
from distsparse.config import RunConfig
from distsparse.launch.record import trial_folder
from distsparse.sweep import Space, parse_space, sweep

HERE = Path(__file__).parent
SPARSITIES = (0.9, 0.95, 0.97, 0.98, 0.99)
MORE_SEEDS = [3, 4]
"""of RigL and SET at 98 %"""

COLUMNS = ["seed", "accuracy", "training_flops", "train_s", "wall_s", "cpu", "torch_version", "trial"]

# Mean and sd of a small independent implementation, in percent; methods by their labels here.
REFERENCE: dict[tuple[str, float], tuple[float, float | None]] = {
    ("dense", 0.0): (98.30, 0.10),
    ("gmp (er)", 0.98): (97.67, 0.07),
    ("gmp (er)", 0.99): (97.14, 0.15),
    ("rigl (er)", 0.9): (98.21, 0.14),
    ("rigl (er)", 0.95): (97.85, 0.01),
    ("rigl (er)", 0.98): (97.26, 0.17),
    ("rigl (er)", 0.99): (96.28, 0.23),
    ("set (er)", 0.9): (98.15, 0.08),
    ("set (er)", 0.95): (97.92, 0.09),
    ("set (er)", 0.98): (96.94, 0.09),
    ("set (er)", 0.99): (95.20, 0.21),
    ("snip", 0.98): (96.19, 0.50),
    ("snip", 0.99): (93.98, 0.47),
    ("static (er)", 0.9): (97.99, 0.06),
    ("static (er)", 0.95): (97.53, 0.04),
    ("static (er)", 0.98): (95.44, 0.23),
    ("static (er)", 0.99): (90.77, 0.25),
    ("rigl (uniform)", 0.98): (96.44, None),
    ("set (uniform)", 0.98): (94.91, None),
    ("imp", 0.97): (98.18, None),
    ("imp, reinit", 0.97): (97.83, None),
    ("imp, shuffle", 0.97): (97.12, None),
}

TEXT = """\
# Fidelity

Written by `python benchmarks/fidelity.py`; the trials are in `benchmarks/fidelity.parquet`. Test
accuracy in percent, mean ± sd over seeds, of LeNet-300-100 on MNIST with standardised inputs: 10
epochs of batches of 100, SGD with Nesterov momentum 0.9, learning rate 0.1 on a cosine to 0, weight
decay 1e-4; ΔT 100, α 0.3, T_end 0.75. In italics the reference, a small independent
implementation's. (Its recipe says inputs in [0, 1]; its numbers are those of standardised ones, see
the README.)

{cpu}, torch {torch}: {trials} trials, {hours:.1f} hours of one core, the median trial {median:.0f} s.

{table}

{few} seeds a cell, {many} for RigL and SET at 98 %. `imp` prunes 20 % of what remains after each of
its trainings, as published; `imp, 50 % a round` prunes faster, so that the whole table takes under
an hour. The controls train once more the topology that `imp` found, from another initialization
(`reinit`) or with the masks shuffled within each layer (`shuffle`).

| what should hold | points ± standard error | holds |
|---|---|---|
{claims}
"""

# (better, worse, sparsity, by at least)
ORDER = (
    ("rigl (er)", "static (er)", 0.98, 1.4),
    ("rigl (er)", "static (er)", 0.99, 4.5),
    ("rigl (er)", "set (er)", 0.99, 0.7),
    ("gmp (er)", "rigl (er)", 0.98, 0.0),
    ("gmp (global)", "rigl (er)", 0.98, 0.0),
    ("rigl (er)", "rigl (uniform)", 0.98, 0.0),
    ("set (er)", "set (uniform)", 0.98, 0.0),
    ("imp", "imp, reinit", 0.97, 0.0),
    ("imp, reinit", "imp, shuffle", 0.97, 0.0),
)


def main() -> None:
    """Train what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs"))
    parser.add_argument("--cpus", type=int)
    args = parser.parse_args()
    values = read_yaml(str(HERE / "spaces" / "fidelity.yaml"))
    cells: dict[str, tuple[str, float]] = {}
    for space in (parse_space(values), more_seeds(values)):
        cells |= {
            config.key: (label(config), config.method.params.get("sparsity", 0.0))
            for config in space.configs()
        }
        sweep(space, args.output, num_cpus=args.cpus)
    for space in controls(values, args.output):
        cells |= {config.key: (label(config), 0.97) for config in space.configs()}
        sweep(space, args.output, num_cpus=args.cpus)
    trials = results.load(args.output / values["study"])
    trials = trials[trials["trial"].isin(cells) & (trials["status"] == "completed")]
    cell = trials["trial"].map(cells)
    frame = trials[COLUMNS].assign(method=cell.str[0], sparsity=cell.str[1])
    frame = frame.sort_values(["method", "sparsity", "seed"], ignore_index=True)
    frame.to_parquet(HERE / "fidelity.parquet")
    text = to_markdown(frame)
    (HERE.parent / "docs" / "fidelity.md").write_text(text)
    print(text)


def more_seeds(values: dict[str, Any]) -> Space:
    """Return the further seeds of RigL and SET at 98 %."""
    further = copy.deepcopy(values)
    further["seeds"] = MORE_SEEDS
    further["space"]["method"]["grid"] = [
        {"name": name, "sparsity": 0.98, "allocation": "er"} for name in ("rigl", "set")
    ]
    return parse_space(further)


def controls(values: dict[str, Any], root: Path) -> list[Space]:
    """Return the controls of IMP at 97 %: each trains that run's topology once more, in another way."""
    imp = copy.deepcopy(values)
    imp["space"]["method"]["grid"] = [{"name": "imp", "sparsity": 0.97}]
    spaces = []
    for config in parse_space(imp).configs():
        source = str(trial_folder(root.resolve(), config))
        space = copy.deepcopy(values)
        space["seeds"] = [config.seed]
        space["space"]["method"]["grid"] = [
            {"name": "lottery", "source": source, "start": "random"},
            {"name": "lottery", "source": source, "shuffle_masks": True},
        ]
        spaces.append(parse_space(space))
    return spaces


def label(config: RunConfig) -> str:
    """Return a configuration's row in the table."""
    name, params = config.method.name, config.method.params
    match name:
        case "imp":
            return "imp" if params["prune_fraction"] == 0.2 else "imp, 50 % a round"
        case "lottery":
            return "imp, shuffle" if params["shuffle_masks"] else "imp, reinit"
        case "gmp" | "rigl" | "set" | "static" | "snfs" | "granet" | "srigl" | "dsr" | "mest":
            return f"{name} ({params['allocation'].replace('_magnitude', '')})"
        case _:
            return name


def to_markdown(frame: pd.DataFrame) -> str:
    """Return the table beside the reference, and what it shows."""
    accuracy = (100 * frame["accuracy"]).groupby([frame["method"], frame["sparsity"]])
    cells = accuracy.agg(["mean", "std", "count"])
    at_98 = cells.xs(0.98, level="sparsity")["mean"].sort_values(ascending=False)
    names = ["dense", *at_98.index, "imp", "imp, reinit", "imp, shuffle"]
    columns = (0.0, *SPARSITIES)
    table = [
        "| method | " + " | ".join(f"{100 * sparsity:g} %" for sparsity in columns) + " |",
        "|---|" + "---|" * len(columns),
        *(f"| {name} | " + " | ".join(_cell(cells, name, s) for s in columns) + " |" for name in names),
    ]
    return TEXT.format(
        cpu=frame["cpu"].iloc[0],
        torch=frame["torch_version"].iloc[0],
        trials=len(frame),
        hours=frame["wall_s"].sum() / 3600,
        median=frame["wall_s"].median(),
        few=int(cells["count"].min()),
        many=int(cells["count"].max()),
        table="\n".join(table),
        claims="\n".join(_claims(cells)),
    )


def _claims(cells: pd.DataFrame) -> list[str]:
    """Return a row for each ordering, and one for the distance from the reference."""
    rows, means = [], cells["mean"]
    variance = cells["std"] ** 2 / cells["count"]
    for better, worse, sparsity, least in ORDER:
        gap = means[better, sparsity] - means[worse, sparsity]
        error = (variance[better, sparsity] + variance[worse, sparsity]) ** 0.5
        bound = f" by {least}" if least else ""
        holds = "**no**" if gap < least else "yes" if gap > 2 * error else "yes, but within the noise"
        points = f"{gap:+.2f} ± {error:.2f}"
        rows.append(f"| {better} above {worse} at {100 * sparsity:g} %{bound} | {points} | {holds} |")
    far = [
        f"{name} at {100 * sparsity:g} % ({means[name, sparsity] - mean:+.2f})"
        for (name, sparsity), (mean, sd) in REFERENCE.items()
        if abs(means[name, sparsity] - mean) > max(3 * (sd or 0.0), 0.5)
    ]
    verdict = f"**no**: {'; '.join(far)}" if far else "yes"
    return [*rows, f"| {len(REFERENCE)} means within 3 sd or 0.5 points of the reference | | {verdict} |"]


def _cell(cells: pd.DataFrame, name: str, sparsity: float) -> str:
    if (name, sparsity) not in cells.index:
        return ""
    found = cells.loc[(name, sparsity)]
    text = f"{found['mean']:.2f} ± {found['std']:.2f}"
    if (name, sparsity) in REFERENCE:
        mean, sd = REFERENCE[name, sparsity]
        text += f" *{mean:.2f}*" if sd is None else f" *{mean:.2f} ± {sd:.2f}*"
    return text


if __name__ == "__main__":
    main()
