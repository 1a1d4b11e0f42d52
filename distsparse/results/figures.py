"""Interactive figures of a study for its report, each a function from data frames to a plotly figure.

User strings in labels are escaped, since plotly reads them as HTML. Every point names its trial.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distsparse.results.configurations import settings
from distsparse.results.pareto import pareto_front
from distsparse.results.plots import COLORS, MARKERS, SPARSITY_TICKS, label
from distsparse.results.summary import summarize

PLOTLY_MARKERS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond"}
GREY = "#9AA1A9"
INK = "#2B3138"
# Where a trial without a value crosses an axis of [0, 1].
MISSING = -0.12


def text(value: Any) -> str:
    """Return a value as escaped text: floats to four significant digits, an en dash for none."""
    if value is None or value is pd.NA or value != value:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return html.escape(str(value))


def descriptions(trials: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Return what to show of each trial under the pointer: its key and some columns."""
    return [
        f"<b>trial {text(row['trial'])}</b>"
        + "".join(
            f"<br>{html.escape(name)} = {text(row[name])}" for name in columns if row[name] == row[name]
        )
        for row in trials.to_dict("records")
    ]


def _shown(trials: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*settings(trials), "seed", *columns]))


def looks(names: Sequence[Any]) -> dict[Any, tuple[str, str]]:
    """Return a colour and a marker for each of some names, the same for the same names."""
    markers = [PLOTLY_MARKERS[marker] for marker in MARKERS]
    return {
        name: (COLORS[place % len(COLORS)], markers[place // len(COLORS) % len(markers)])
        for place, name in enumerate(sorted(map(str, names)))
    }


def pareto_pair(trials: pd.DataFrame, x: str, y: str, maximize: Sequence[str], color: str) -> Any:
    """Return all trials over two objectives, with the front of the two as a line."""
    import plotly.graph_objects as go

    figure = go.Figure()
    shown = _shown(trials, [x, y])
    upward = [name for name in (x, y) if name in maximize]
    downward = [name for name in (x, y) if name not in maximize]
    front = pareto_front(trials, maximize=upward, minimize=downward)
    stairs = front.drop_duplicates([x, y]).sort_values(x)
    figure.add_scatter(
        x=_axis_values(stairs[x], x),
        y=_axis_values(stairs[y], y),
        mode="lines",
        name="front of the two",
        hoverinfo="skip",
        line={"color": INK, "width": 1.5, "shape": "vh" if x in maximize else "hv"},
    )
    for name, part, (shade, marker) in _by(trials, color):
        on_front = part.index.isin(front.index)
        figure.add_scatter(
            x=_axis_values(part[x], x),
            y=_axis_values(part[y], y),
            mode="markers",
            name=name,
            customdata=part["trial"],
            hovertext=descriptions(part, shown),
            hoverinfo="text",
            marker={
                "color": shade,
                "symbol": marker,
                "size": np.where(on_front, 11, 7),
                "opacity": np.where(on_front, 1.0, 0.5),
                "line": {"color": INK, "width": np.where(on_front, 1.2, 0)},
            },
        )
    _label_axes(figure, {"x": x, "y": y}, trials, maximize)
    return figure


def pareto_space(
    trials: pd.DataFrame, axes: Sequence[str], maximize: Sequence[str], minimize: Sequence[str], color: str
) -> Any:
    """Return all trials over three objectives, those on the front of all three solid."""
    import plotly.graph_objects as go

    figure = go.Figure()
    shown = _shown(trials, axes)
    front = pareto_front(trials, maximize=maximize, minimize=minimize)
    for name, part, (shade, marker) in _by(trials, color):
        for solid in (True, False):
            points = part[part.index.isin(front.index) == solid]
            figure.add_scatter3d(
                **{side: _axis_values(points[axis], axis) for side, axis in zip("xyz", axes, strict=True)},
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=solid,
                customdata=points["trial"],
                hovertext=descriptions(points, shown),
                hoverinfo="text",
                opacity=1.0 if solid else 0.35,
                marker={
                    "color": shade,
                    "symbol": marker.partition("-")[0].replace("triangle", "cross"),
                    "size": 5,
                },
            )
    scene = {
        f"{side}axis": {"title": {"text": _title(axis, maximize)}, **_ticks(axis, trials)}
        for side, axis in zip("xyz", axes, strict=True)
    }
    figure.update_layout(scene=scene)
    return figure


def sparsity_curves(trials: pd.DataFrame, value: str, color: str) -> Any:
    """Return the mean over seeds and its interval against the sparsity reached, a line per method."""
    import plotly.graph_objects as go

    asked = "requested_sparsity" in trials and trials["requested_sparsity"].notna().any()
    level = "requested_sparsity" if asked else "sparsity"
    known = trials.assign(**{level: trials[level].fillna(0.0).round(6)})
    table = summarize(known, [value, "sparsity"], by=[color, level])
    figure = go.Figure()
    for name, part, (shade, marker) in _by(table, color):
        hover = [
            f"<b>{name}</b> at sparsity {text(row['sparsity_mean'])}<br>{html.escape(value)} = "
            f"{text(row[f'{value}_mean'])} ± {text(row[f'{value}_sd'])}"
            f"<br>interval [{text(row[f'{value}_low'])}, {text(row[f'{value}_high'])}]"
            f"<br>{row['num_trials']} trials: {_broken(row['trials'])}"
            for row in part.to_dict("records")
        ]
        mean = part[f"{value}_mean"]
        figure.add_scatter(
            x=_axis_values(part["sparsity_mean"], "sparsity"),
            y=mean,
            error_y={
                "array": part[f"{value}_high"] - mean,
                "arrayminus": mean - part[f"{value}_low"],
                "thickness": 1.3,
                "width": 4,
            },
            mode="lines+markers",
            name=name,
            customdata=part["trials"].str.partition(" ")[0],
            hovertext=hover,
            hoverinfo="text",
            line={"color": shade, "width": 2},
            marker={"color": shade, "symbol": marker, "size": 8},
        )
    _label_axes(figure, {"x": "sparsity", "y": value}, table.assign(sparsity=table["sparsity_mean"]), [value])
    return figure


def latency_by_format(latencies: pd.DataFrame, trials: pd.DataFrame) -> Any:
    """Return medians over sparsity, with whiskers from p10 to p90, a colour for each format.

    ``latencies`` are of one way of measuring, see :func:`distsparse.results.latencies.measured`. Markers are
    hollow where the medians had not settled.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    shown = trials[trials["trial"].isin(latencies["trial"])]
    hover = dict(zip(shown["trial"], descriptions(shown, _shown(trials, ["sparsity"])), strict=True))
    sparsity = shown.drop_duplicates("trial").set_index("trial")["sparsity"]
    for name, part, (shade, marker) in _by(latencies, "format"):
        unsettled = part["stable"].astype("boolean").eq(False).fillna(False)
        figure.add_scatter(
            x=_axis_values(part["trial"].map(sparsity), "sparsity"),
            y=part["p50_ms"],
            error_y={
                "array": part["p90_ms"] - part["p50_ms"],
                "arrayminus": part["p50_ms"] - part["p10_ms"],
                "thickness": 1.1,
                "width": 3,
            },
            mode="markers",
            name=name,
            customdata=part["trial"],
            hovertext=[
                f"<b>{name}</b> {text(row['p50_ms'])} ms [{text(row['p10_ms'])}, {text(row['p90_ms'])}]"
                f"{' not settled' if open_ else ''}<br>{hover[row['trial']]}"
                for row, open_ in zip(part.to_dict("records"), unsettled, strict=True)
            ],
            hoverinfo="text",
            marker={
                "color": shade,
                "symbol": [f"{marker}-open" if open_ else marker for open_ in unsettled],
                "size": 8,
            },
        )
    values = latencies.assign(sparsity=latencies["trial"].map(sparsity))
    _label_axes(figure, {"x": "sparsity", "y": "p50_ms"}, values, [])
    return figure


def parallel_coordinates(trials: pd.DataFrame, axes: Sequence[str], color: str) -> Any:
    """Return a line per trial over its settings and outcomes, each axis from its lowest to its highest."""
    import plotly.graph_objects as go

    figure = go.Figure()
    heights = {}
    for place, axis in enumerate(axes):
        heights[axis], labels = _heights(trials[axis])
        for height, words in labels:
            figure.add_annotation(
                x=place, y=height, text=words, showarrow=False, xanchor="left", xshift=4, font={"size": 10}
            )
    hover = dict(zip(trials["trial"], descriptions(trials, _shown(trials, axes)), strict=True))
    for name, part, (shade, _) in _by(trials, color):
        xs: list[Any] = []
        ys: list[Any] = []
        keys: list[Any] = []
        rows = zip(part["trial"], *(heights[axis][part.index] for axis in axes), strict=True)
        for key, *line in rows:
            xs += [*range(len(axes)), None]
            ys += [*line, None]
            keys += [key] * (len(axes) + 1)
        figure.add_scatter(
            x=xs,
            y=ys,
            mode="lines+markers",
            name=name,
            customdata=keys,
            hovertext=[hover[key] for key in keys],
            hoverinfo="text",
            opacity=0.55,
            line={"color": shade, "width": 1.2},
            marker={"color": shade, "size": 5},
        )
    figure.update_xaxes(
        tickvals=list(range(len(axes))),
        ticktext=[html.escape(label(axis)) for axis in axes],
        range=[-0.2, len(axes) - 0.4],
        side="top",
        gridcolor=GREY,
    )
    figure.update_yaxes(visible=False, range=[MISSING - 0.04, 1.06])
    return figure


def learning_curves(steps: pd.DataFrame, trials: pd.DataFrame, column: str, color: str) -> Any:
    """Return a column of ``steps`` over the steps, a line per trial."""
    import plotly.graph_objects as go

    figure = go.Figure()
    shown = _shown(trials, ["accuracy", "sparsity"])
    of_trial = dict(tuple(steps[steps[column].notna()].groupby("trial")))
    for name, part, (shade, _) in _by(trials, color):
        hover = dict(zip(part["trial"], descriptions(part, shown), strict=True))
        first = True
        for key in part["trial"]:
            if key in of_trial:
                curve = of_trial[key]
                figure.add_scatter(
                    x=curve["step"],
                    y=curve[column],
                    mode="lines+markers" if len(curve) < 30 else "lines",
                    name=name,
                    legendgroup=name,
                    showlegend=first,
                    customdata=[key] * len(curve),
                    hovertext=[
                        f"step {step}: {text(value)}<br>{hover[key]}"
                        for step, value in zip(curve["step"], curve[column].tolist(), strict=True)
                    ],
                    hoverinfo="text",
                    line={"color": shade, "width": 1.4},
                    marker={"size": 4},
                    opacity=0.8,
                )
                first = False
    figure.update_xaxes(title_text="Step")
    figure.update_yaxes(title_text=html.escape(label(column)))
    return figure


def layer_heat_map(layers: pd.DataFrame, trials: pd.DataFrame) -> Any:
    """Return the sparsity of every layer of every trial."""
    import plotly.graph_objects as go

    names = list(dict.fromkeys(layers["layer"]))
    table = layers.pivot_table(index="trial", columns="layer", values="sparsity", sort=False)
    shown = trials[trials["trial"].isin(table.index)]
    grid = table.loc[shown["trial"], names]
    hover = descriptions(shown, _shown(trials, ["sparsity", "accuracy"]))
    columns = settings(trials) or ["seed"]
    rows = [
        f"{' '.join(text(row[name]) for name in columns[:3] if row[name] == row[name])} · {row['trial'][:6]}"
        for row in shown.to_dict("records")
    ]
    figure = go.Figure()
    figure.add_heatmap(
        z=grid.to_numpy(),
        x=[html.escape(name) for name in names],
        y=list(range(len(rows))),
        customdata=np.repeat(shown["trial"].to_numpy()[:, None], len(names), axis=1),
        hovertext=[
            [f"{html.escape(n)}: {text(float(v))}<br>{words}" for n, v in zip(names, line, strict=True)]
            for line, words in zip(grid.to_numpy(), hover, strict=True)
        ],
        hoverinfo="text",
        colorscale="Viridis",
        colorbar={"title": {"text": "sparsity"}, "thickness": 12},
    )
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=rows, autorange="reversed")
    return figure


def topology_timeline(rewires: pd.DataFrame, trials: pd.DataFrame, color: str) -> Any:
    """Return the fraction of the active weights that each mask update replaced, a line per trial."""
    totals = (
        rewires.groupby(["trial", "step"], sort=True)[["num_grown", "num_dropped", "nnz"]].sum().reset_index()
    )
    moved = totals[["num_grown", "num_dropped"]].max(axis=1)
    totals["changed"] = moved / totals["nnz"].clip(lower=1)
    figure = learning_curves(totals[totals["step"] > 0], trials, "changed", color)
    figure.update_yaxes(title_text="Weights changed at an update / active weights", rangemode="tozero")
    return figure


def importance_bars(table: pd.DataFrame) -> Any:
    """Return the importance of each setting as a bar, with its standard deviation."""
    import plotly.graph_objects as go

    table = table.iloc[::-1]
    figure = go.Figure()
    figure.add_bar(
        x=table["importance"],
        y=[html.escape(name) for name in table["setting"]],
        error_x={"array": table["sd"], "thickness": 1.2},
        orientation="h",
        marker={"color": COLORS[0]},
    )
    figure.update_xaxes(title_text="Explained variance lost when shuffled")
    return figure


def _by(frame: pd.DataFrame, color: str) -> list[tuple[str, pd.DataFrame, tuple[str, str]]]:
    """Return (escaped name, rows, look) for each value of a column."""
    names = frame[color].astype("string").fillna("none")
    look = looks(names.unique().tolist())
    return [(html.escape(name), frame[(names == name).to_numpy()], look[name]) for name in look]


def _broken(keys: str) -> str:
    """Return trial keys, three on a line."""
    words = keys.split()
    return "<br>".join(" ".join(words[place : place + 3]) for place in range(0, len(words), 3))


def _axis_values(values: pd.Series[Any], name: str) -> NDArray[np.float64]:
    """Return numbers as an axis shows them: a sparsity by the logarithm of the density."""
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    return -np.log10(1 - np.minimum(numbers, 1 - 1e-9)) if name.endswith("sparsity") else numbers


def _ticks(name: str, trials: pd.DataFrame) -> dict[str, Any]:
    if not name.endswith("sparsity"):
        return {}
    low, high = trials[name].min(), trials[name].max()
    ticks = [tick for tick in SPARSITY_TICKS if low - 0.05 <= tick <= high + 1e-9]
    return {
        "tickvals": (-np.log10(1 - np.array(ticks))).tolist(),
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


def _title(name: str, maximize: Sequence[str]) -> str:
    return f"{html.escape(label(name))} {'→ better' if name in maximize else '← better'}"


def _label_axes(figure: Any, axes: Mapping[str, str], trials: pd.DataFrame, maximize: Sequence[str]) -> None:
    for side, name in axes.items():
        update = figure.update_xaxes if side == "x" else figure.update_yaxes
        title = html.escape(label(name)) if name == "sparsity" and side == "x" else _title(name, maximize)
        update(title_text=title, **_ticks(name, trials))
        values = trials[name] if name in trials else trials[f"{name}_mean"]
        if not name.endswith("sparsity") and values.min() > 0 and values.max() / values.min() > 100:
            update(type="log")


def _heights(values: pd.Series[Any]) -> tuple[pd.Series[Any], list[tuple[float, str]]]:
    """Return where each value lies on its axis, in [0, 1], and the axis' labels."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        low, high = float(values.min()), float(values.max())
        numbers = values.astype("Float64").astype(float)
        scaled = (numbers - low) / (high - low) if high > low else numbers * 0 + 0.5
        ends = [(0.0, text(low)), (1.0, text(high))] if high > low else [(0.5, text(low))]
        return scaled.fillna(MISSING), [*ends, *([(MISSING, "none")] if scaled.isna().any() else [])]
    names = values.astype("string").fillna("none")
    order = sorted(names.unique())
    places = {name: place / max(len(order) - 1, 1) for place, name in enumerate(order)}
    return names.map(places).astype(float), [
        (height, text(name)) for name, height in places.items() if len(order) <= 12
    ]
