"""The Pareto front as a figure: one panel per pair of objectives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from distsparse.results.files import replacing
from distsparse.results.pareto import check_objectives, has_values, pareto_front

FORMATS = (".pdf", ".png", ".svg")
# Okabe and Ito's colours, which colour-blind readers tell apart; another marker marks a second round of them.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
MARKERS = ("o", "s", "^", "D")
MAX_CATEGORIES = len(COLORS) * len(MARKERS)
MAX_NUMBERS_AS_CATEGORIES = 8
NAMES = {
    "accuracy": "Test accuracy",
    "loss": "Test loss",
    "inference_flops": "Inference FLOPs (relative to dense)",
    "training_flops": "Training FLOPs (relative to dense)",
    "dense_inference_flops": "FLOPs per sample (dense)",
    "nnz": "Active weights",
    "num_parameters": "Parameters",
    "latency_ms": "Latency of one sample (ms)",
    "p50_ms": "Latency, median (ms)",
    "wall_s": "Training time (s)",
}
SPARSITY_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
UNITS = {"_ms": "ms", "_per_s": "1/s", "_s": "s", "_bytes": "bytes"}


@dataclass(frozen=True)
class Group:
    """Trials that share a marker and a line of the legend."""

    label: str
    marker: str
    color: Any
    rows: NDArray[np.bool_]


def pareto_plot(
    frame: pd.DataFrame,
    *,
    maximize: Sequence[str] = (),
    minimize: Sequence[str] = (),
    color: str | None = "method.name",
    path: str | Path,
) -> Path:
    """Draw all completed trials and their Pareto front, and return the file written (PNG, PDF or SVG).

    Each pair of objectives has a panel, in which rings and a line mark the front of that pair; trials on the
    front of all objectives are solid, the others faint. ``color`` is a column that colours the points: by
    category, or along a scale when it has many numbers. An axis that spans more than two decades is
    logarithmic; one of sparsities that reach from low to high is logarithmic in the density.

    Raises:
        ValueError: fewer than two objectives, a column that is unknown or not numeric, no trial to draw, or
            another kind of file.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"plot = {str(path)!r}: allowed are files that end in {', '.join(FORMATS)}")
    objectives = [*maximize, *minimize]
    check_objectives(frame, objectives)
    if len(objectives) < 2:
        raise ValueError(f"a plot needs two objectives or more, not only {objectives[0]!r}")
    if color is not None and color not in frame.columns:
        raise ValueError(f"unknown column {color!r} for the colour of the points")
    trials = _drawable(frame, objectives)
    figure = _figure(trials, list(maximize), list(minimize), color)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)
    return path


def _drawable(frame: pd.DataFrame, objectives: list[str]) -> pd.DataFrame:
    """Return the completed trials with a finite value for every objective, objectives as floats."""
    trials: pd.DataFrame = frame[frame["status"] == "completed"] if "status" in frame else frame
    trials = trials.loc[has_values(trials, objectives)].astype(dict.fromkeys(objectives, np.float64))
    trials = trials.loc[np.isfinite(trials[objectives].to_numpy()).all(axis=1)]
    if trials.empty:
        raise ValueError(f"nothing to plot: no completed trial has a value for {' and '.join(objectives)}")
    return trials


def _figure(trials: pd.DataFrame, maximize: list[str], minimize: list[str], color: str | None) -> Any:
    from matplotlib import rc_context
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    pairs = list(itertools.combinations([*maximize, *minimize], 2))
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    trials = trials.reset_index(drop=True)
    front = pareto_front(trials, maximize=maximize, minimize=minimize)
    on_front = trials.index.isin(front.index)
    front_label = "Pareto front" if len(pairs) == 1 else "front of the pair"
    scale = None
    if color is not None and _is_scale(trials[color]):
        values = trials[color].astype(float)
        scale = ScalarMappable(Normalize(values.min(), values.max()), "viridis")
    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(style):
        figure = Figure(figsize=(3.9 * columns + 1.3, 3.5 * rows + 0.3), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, (y, x) in zip(axes, pairs, strict=False):
            for group in _groups(trials, color, scale):
                _scatter(panel, trials, x, y, group, on_front)
            _draw_front(panel, trials, x, y, maximize, label=front_label)
            _decorate(panel, trials, x, y, maximize)
        for unused in axes[len(pairs) :]:
            unused.set_visible(False)
        if len(pairs) > 1:
            axes[0].scatter(
                [], [], color="#999999", edgecolors="black", label="on the front of all objectives"
            )
        _legend(figure, axes[: len(pairs)], axes[columns - 1], color, scale)
        figure.suptitle(_title(trials, front), fontsize=11)
    return figure


def _is_scale(values: pd.Series[Any]) -> bool:
    is_number = is_numeric_dtype(values) and not is_bool_dtype(values)
    return is_number and values.nunique() > MAX_NUMBERS_AS_CATEGORIES


def _groups(trials: pd.DataFrame, color: str | None, scale: Any) -> list[Group]:
    if color is None:
        return [Group("trial", "o", COLORS[0], np.ones(len(trials), dtype=bool))]
    values = trials[color]
    missing = values.isna().to_numpy(dtype=bool)
    groups = [Group(f"no {color}", "X", "#999999", missing)] if missing.any() else []
    if scale is not None:
        numbers = values[~missing].to_numpy(dtype=np.float64)
        return [Group("", "o", scale.to_rgba(numbers), ~missing), *groups]
    categories = list(values.dropna().sort_values().unique())
    if len(categories) > MAX_CATEGORIES:
        raise ValueError(f"column {color!r} has {len(categories)} values; {MAX_CATEGORIES} can be told apart")
    return [
        Group(
            label=f"{category:.4g}" if isinstance(category, float) else str(category),
            marker=MARKERS[index // len(COLORS)],
            color=COLORS[index % len(COLORS)],
            rows=(values == category).fillna(False).to_numpy(dtype=bool),
        )
        for index, category in enumerate(categories)
    ] + groups


def _scatter(
    panel: Any, trials: pd.DataFrame, x: str, y: str, group: Group, on_front: NDArray[np.bool_]
) -> None:
    """Draw one group, faint where it is not on the front of all objectives."""
    faint = {"alpha": 0.4, "edgecolors": "none", "zorder": 2}
    solid = {"alpha": 1.0, "edgecolors": "black", "linewidths": 0.6, "zorder": 4}
    for look, rows in ((faint, group.rows & ~on_front), (solid, group.rows & on_front)):
        shades = group.color if isinstance(group.color, str) else group.color[rows[group.rows]]
        panel.scatter(trials[x][rows], trials[y][rows], s=24, c=shades, marker=group.marker, **look)
    if group.label:
        panel.scatter([], [], s=24, c=group.color, marker=group.marker, label=group.label)


def _draw_front(panel: Any, trials: pd.DataFrame, x: str, y: str, maximize: list[str], *, label: str) -> None:
    """Draw the pair's front as the stairs that bound what it dominates."""
    upward = [name for name in (x, y) if name in maximize]
    downward = [name for name in (x, y) if name not in maximize]
    front = pareto_front(trials, maximize=upward, minimize=downward).drop_duplicates([x, y]).sort_values(x)
    # Between two points holds the better y among those with an x at least as good: the right one's if x is
    # maximized, the left one's if it is minimized.
    corner = "steps-pre" if x in maximize else "steps-post"
    ring = {"marker": "o", "markersize": 8.5, "markerfacecolor": "none", "markeredgewidth": 0.9}
    look = {"color": "#333333", "linewidth": 1.1, "zorder": 3}
    panel.plot(front[x], front[y], drawstyle=corner, label=label, **look, **ring)


def _decorate(panel: Any, trials: pd.DataFrame, x: str, y: str, maximize: list[str]) -> None:
    panel.set_xlabel(f"{label(x)} {'→' if x in maximize else '←'}")
    panel.set_ylabel(f"{label(y)} {'→' if y in maximize else '←'}")
    for axis, set_scale, name in ((panel.xaxis, panel.set_xscale, x), (panel.yaxis, panel.set_yscale, y)):
        low, high = trials[name].min(), trials[name].max()
        if low > 0 and high / low > 100:
            set_scale("log")
        elif name.endswith("sparsity") and low >= 0 and high < 1 and (1 - low) / (1 - high) > 10:
            set_scale("function", functions=(_depth, _sparsity))
            ticks = [tick for tick in SPARSITY_TICKS if low <= tick <= high]
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.grid(visible=True, color="#E6E6E6", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.margins(0.06)


def _depth(sparsity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -log(density)."""
    return np.asarray(-np.log1p(-np.minimum(sparsity, 1 - 1e-12)))


def _sparsity(depth: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-np.expm1(-depth))


def _legend(figure: Any, panels: Any, corner: Any, color: str | None, scale: Any) -> None:
    """Put the legend beside the panel in the corner, or below when a colour bar is there."""
    handles, labels = panels[0].get_legend_handles_labels()
    if scale is None:
        title = label(color) if color is not None else None
        look = {"frameon": False, "alignment": "left", "title": title, "borderaxespad": 0.0}
        corner.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.03, 1.0), **look)
    else:
        figure.colorbar(scale, ax=panels.tolist(), label=label(str(color)), aspect=30)
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _title(trials: pd.DataFrame, front: pd.DataFrame) -> str:
    names = list(trials["study"].unique()) if "study" in trials else []
    prefix = f"{names[0]}: " if len(names) == 1 else ""
    return f"{prefix}{len(front)} of {len(trials)} trials on the Pareto front"


def label(column: str) -> str:
    """Return a column's name for people, with its unit."""
    if column in NAMES:
        return NAMES[column]
    if "." in column:
        return column
    for suffix, unit in UNITS.items():
        if column.endswith(suffix):
            return f"{column.removesuffix(suffix).replace('_', ' ').capitalize()} ({unit})"
    return column.replace("_", " ").capitalize()
