"""A study as one HTML file: what to ship and why, readable offline, every number traceable to its trial."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from distsparse.results import figures, page
from distsparse.results.compare import compare
from distsparse.results.configurations import completed, settings
from distsparse.results.files import replacing
from distsparse.results.hypervolume import knee_point
from distsparse.results.importance import importance
from distsparse.results.latencies import MEASURED, measured, side_by_side
from distsparse.results.loading import load
from distsparse.results.pareto import check_objectives, has_values, pareto_front
from distsparse.results.replicated_front import front_of_means

MAXIMIZE = ("accuracy", "sparsity")
MINIMIZE = ("latency_ms",)
# More would be slow to open and say no more.
MAX_ROWS = 2000
MAX_CURVES = 60
MAX_LATENCY_FIGURES = 6


def write_report(
    path: str | Path,
    output: str | Path,
    *,
    maximize: Sequence[str] = (),
    minimize: Sequence[str] = (),
    color: str = "method.name",
) -> Path:
    """Write the report of a results folder, or of one study, and return its file.

    Args:
        path: a results folder or a study's.
        output: the HTML file; it appears whole.
        maximize: objectives, more being better; without any they are accuracy, sparsity and latency.
        minimize: objectives, less being better.
        color: a column whose values have a colour each.

    Raises:
        ValueError: plotly is not installed, results that are not there or cannot be read, no completed trial,
            or objectives that are no numeric columns.
    """
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise ValueError("a report needs plotly: pip install 'distsparse[report]'") from None
    trials = load(path)
    done = completed(trials)
    if done.empty:
        raise ValueError(f"{path}: no trial completed: nothing to report")
    if not maximize and not minimize:
        maximize = [name for name in MAXIMIZE if done[name].notna().any()]
        minimize = [name for name in MINIMIZE if done[name].notna().any()]
    check_objectives(done, [*maximize, *minimize])
    color = color if color in done else "study"
    output = Path(output)
    text = _report(path, trials, list(maximize), list(minimize), color)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as file:
        file.write(text.encode())
    return output


def _report(
    path: str | Path, trials: pd.DataFrame, maximize: list[str], minimize: list[str], color: str
) -> str:
    done = completed(trials)
    objectives = [*maximize, *minimize]
    means = front_of_means(done, maximize=maximize, minimize=minimize)
    drawn = _sample(done[has_values(done, objectives)], maximize, minimize)
    chosen = _chosen(drawn, maximize, minimize)
    numbers = page.Figures()
    sections = [
        ("What to ship", _decision(means, maximize, minimize)),
        ("Trade-offs", _trade_offs(numbers, drawn, maximize, minimize, color)),
        ("Over sparsity", _over_sparsity(numbers, done, color)),
        ("Latency by format", _latencies(numbers, path, drawn)),
        ("Which differences are real", _differences(done, color)),
        ("Which settings matter", _importance(numbers, done)),
        ("All settings", _settings(numbers, drawn, objectives, color)),
        ("Learning curves", _curves(numbers, path, chosen, color)),
        ("Layers", _layers(numbers, path, chosen)),
        ("Topology changes", _timeline(numbers, path, chosen, color)),
        ("Failures", _failures(trials)),
        ("All trials", _all_trials(trials, objectives)),
    ]
    studies = ", ".join(sorted(trials["study"].unique()))
    times = trials["finished_at"].dropna()
    when = f" · finished {times.max():%Y-%m-%d %H:%M} UTC" if len(times) else ""
    counts = [(len(trials[trials["status"] == status]), status) for status in ("stopped", "failed")]
    ended = "".join(f", {number} {status}" for number, status in counts if number or status == "failed")
    subtitle = f"{len(done)} of {len(trials)} trials completed{ended}{when}"
    cards = _cards(done, means, maximize, minimize)
    return page.page(f"Study {studies}", subtitle, cards, [part for part in sections if part[1]])


def _sample(trials: pd.DataFrame, maximize: list[str], minimize: list[str]) -> pd.DataFrame:
    """Return all trials, or of too many the front and an even selection of the others."""
    if len(trials) <= MAX_ROWS:
        return trials
    front = pareto_front(trials, maximize=maximize, minimize=minimize)
    others = trials.drop(front.index).iloc[:: len(trials) // MAX_ROWS + 1]
    return trials.loc[[*front.index, *others.index]].sort_index()


def _chosen(trials: pd.DataFrame, maximize: list[str], minimize: list[str]) -> pd.DataFrame:
    """Return the trials of which curves are drawn: all, or of too many those on the front first."""
    front = pareto_front(trials, maximize=maximize, minimize=minimize)
    others = trials.drop(front.index)
    return trials.loc[[*front.index, *others.index][:MAX_CURVES]].sort_index()


def _cards(done: pd.DataFrame, means: pd.DataFrame, maximize: list[str], minimize: list[str]) -> str:
    cards = []
    for name, best in (*((n, "highest") for n in maximize), *((n, "lowest") for n in minimize)):
        row = done.sort_values(name, ascending=best == "lowest", kind="stable", na_position="last").iloc[0]
        cards.append(page.card(f"{best} {name}", figures.text(row[name]), page.trial_link(row["trial"])))
    knee = knee_point(means, maximize=_means(maximize), minimize=_means(minimize))
    if len(knee):
        values = "<br>".join(f"{n} {figures.text(knee[f'{n}_mean'].item())}" for n in (*maximize, *minimize))
        names = [str(name) for name in knee.columns[: list(knee.columns).index("num_trials")]]
        what = ", ".join(f"{name.split('.')[-1]} {knee[name].item()}" for name in names[:2])
        links = " ".join(map(page.trial_link, knee["trials"].item().split()))
        cards.append(page.card("knee of the front of means", what, f"{values}<br>{links}"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _decision(means: pd.DataFrame, maximize: list[str], minimize: list[str]) -> str:
    """Return the configurations on, or near, the front of means."""
    near = means[means["on_front"] | (means["front_frequency"] >= 0.05)]
    near = near.sort_values(_means([*maximize, *minimize])[0], ascending=not maximize, kind="stable")
    knee = knee_point(means, maximize=_means(maximize), minimize=_means(minimize))
    columns = [name for name in near.columns if name != "trials"]
    words = (
        "Configurations that no other one beats in every objective, by means over seeds, and those that are "
        "on this front in 5 % or more of resamples of their seeds (front_frequency). One trial alone never "
        "moves in resampling: give what you want to ship some seeds. The front's knee is tinted."
    )
    return page.note(words) + page.table(near, [*columns, "trials"], marked=set(knee.index))


def _means(names: Sequence[str]) -> list[str]:
    return [f"{name}_mean" for name in names]


def _trade_offs(
    numbers: page.Figures, trials: pd.DataFrame, maximize: list[str], minimize: list[str], color: str
) -> str:
    objectives = [*maximize, *minimize]
    if len(objectives) < 2 or trials.empty:
        return ""
    parts = [
        numbers.add(figures.pareto_pair(trials, x, y, maximize, color))
        for y, x in itertools.combinations(objectives, 2)
    ]
    words = (
        "Point at a trial to see its settings; click it to go to its row. The line is the front of the two."
    )
    space = ""
    if len(objectives) >= 3:
        space = "<h3>All three; drag to turn</h3>" + numbers.add(
            figures.pareto_space(trials, objectives[:3], maximize, minimize, color), height=560
        )
    return f'{page.note(words)}<div class="grid">{"".join(parts)}</div>{space}'


def _over_sparsity(numbers: page.Figures, done: pd.DataFrame, color: str) -> str:
    values = [name for name in ("accuracy", "latency_ms") if done[name].notna().any()]
    if done["sparsity"].nunique() < 2 or not values:
        return ""
    parts = [numbers.add(figures.sparsity_curves(done, name, color)) for name in values]
    words = (
        "Means over seeds (and over all other settings) with the 95 % bootstrap interval of the mean. Of two "
        "or three seeds that interval is their range."
    )
    return f'{page.note(words)}<div class="grid">{"".join(parts)}</div>'


def _latencies(numbers: page.Figures, path: str | Path, trials: pd.DataFrame) -> str:
    latencies = _table_of(path, "latencies", trials)
    if latencies.empty:
        return ""
    rows = measured(latencies)
    # Latencies of two machines, or batch sizes, do not compare: each has a figure.
    ways = [(way, part) for way, part in rows.groupby(list(MEASURED), sort=True, dropna=False)]
    ways.sort(key=lambda item: -item[1]["trial"].nunique())
    parts = []
    for (batch_size, num_threads, dtype, machine), part in ways[:MAX_LATENCY_FIGURES]:
        what = f"batch of {batch_size}, {num_threads} thread(s), {dtype}, on {machine}"
        figure = numbers.add(figures.latency_by_format(part, trials))
        parts.append(f"<div><h3>{figures.text(what)}</h3>{figure}</div>")
    words = (
        "Measured medians of one call, whiskers from the 10th to the 90th percentile. Hollow, or not stable: "
        "the medians had not settled, on a machine that was busy. speed_up is the dense median over its own."
    )
    table = side_by_side(rows)
    if table["study"].nunique() == 1:
        table = table.drop(columns="study")
    # A configuration that is in several studies has the same key, and sparsity, in each.
    of_trial = trials.drop_duplicates("trial").set_index("trial")
    place = list(table.columns).index("trial") + 1
    table.insert(place, "sparsity", table["trial"].map(of_trial["sparsity"]))
    less = f" The first {MAX_ROWS} of {len(table)} rows." if len(table) > MAX_ROWS else ""
    if len(ways) > MAX_LATENCY_FIGURES:
        less += f" {MAX_LATENCY_FIGURES} of {len(ways)} ways of measuring are drawn; the table has all."
    shown = page.table(table.head(MAX_ROWS), list(table.columns))
    return f'{page.note(words + less)}<div class="grid">{"".join(parts)}</div>{shown}'


def _differences(done: pd.DataFrame, color: str) -> str:
    if done[color].nunique() < 2 or done["accuracy"].isna().all():
        return ""
    table = compare(done, "accuracy", between=color)
    if table.empty:
        return ""
    words = (
        "Accuracy of a minus that of b over pairs of trials with the same seed and settings; 95 % interval, "
        "paired t-test, and its p-value corrected for the number of rows (Holm). A dash: too little to say."
    )
    table = table.sort_values("p_holm", kind="stable")
    return page.note(words) + page.table(table, list(table.columns))


def _importance(numbers: page.Figures, done: pd.DataFrame) -> str:
    try:
        table = importance(_sample(done, ["accuracy"], []), "accuracy")
    except ValueError:  # too few trials, or nothing that differs
        return ""
    explained = table["explained"].iloc[0]
    words = (
        f"Permutation importance for accuracy in a random forest, which explains {max(explained, 0):.0%} of "
        f"the variance of trials that it has not seen{'' if explained > 0.3 else ': too little to go by'}."
    )
    if explained < 0.1:
        return page.note(words)
    return page.note(words) + numbers.add(figures.importance_bars(table), height=120 + 26 * len(table))


def _settings(numbers: page.Figures, trials: pd.DataFrame, objectives: list[str], color: str) -> str:
    varying = [name for name in settings(trials) if trials[name].nunique() > 1][:8]
    axes = [*varying, *(name for name in objectives if name not in varying)]
    if len(axes) < 2:
        return ""
    return page.note("A line per trial.") + numbers.add(
        figures.parallel_coordinates(trials, axes, color), height=460
    )


def _curves(numbers: page.Figures, path: str | Path, chosen: pd.DataFrame, color: str) -> str:
    steps = _table_of(path, "steps", chosen)
    columns = [
        name
        for name in ("validation_accuracy", "test_accuracy", "train_loss")
        if name in steps and steps[name].notna().any()
    ]
    parts = [numbers.add(figures.learning_curves(steps, chosen, name, color)) for name in columns[-2:]]
    return f'{_limited(chosen)}<div class="grid">{"".join(parts)}</div>' if parts else ""


def _layers(numbers: page.Figures, path: str | Path, chosen: pd.DataFrame) -> str:
    layers = _table_of(path, "layers", chosen)
    if layers.empty:
        return ""
    order = [name for name in ("method.name", "requested_sparsity", "seed") if name in chosen]
    figure = figures.layer_heat_map(layers, chosen.sort_values(order, kind="stable"))
    height = 130 + 18 * layers["trial"].nunique()
    return page.note("Sparsity of each layer at the end.") + numbers.add(figure, height=height)


def _timeline(numbers: page.Figures, path: str | Path, chosen: pd.DataFrame, color: str) -> str:
    rewires = _table_of(path, "rewires", chosen)
    if rewires.empty or not (rewires["step"] > 0).any():
        return ""
    words = "Weights grown or dropped at each mask update, whichever is more, per active weight."
    return page.note(words) + numbers.add(figures.topology_timeline(rewires, chosen, color))


def _table_of(path: str | Path, table: str, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of some trials in a table; none where there is no such table."""
    try:
        frame = load(path, table)
    except ValueError:
        return pd.DataFrame({"trial": []})
    return frame[frame["trial"].isin(chosen["trial"])]


def _limited(chosen: pd.DataFrame) -> str:
    if len(chosen) < MAX_CURVES:
        return ""
    return page.note(f"{MAX_CURVES} trials are drawn, those on the front among them.")


def _failures(trials: pd.DataFrame) -> str:
    failed = trials[trials["status"] == "failed"].head(MAX_ROWS)
    return page.table(failed, ["trial", *settings(trials), "seed", "error"]) if len(failed) else ""


def _all_trials(trials: pd.DataFrame, objectives: list[str]) -> str:
    outcomes = [*objectives, "loss", "inference_flops", "training_flops", "num_updates", "wall_s"]
    shown = trials.head(MAX_ROWS)
    columns = ["trial", "status", *settings(trials), "seed", *(n for n in outcomes if shown[n].notna().any())]
    columns = list(dict.fromkeys(columns))
    table = page.table(shown, columns, name="trials", anchors=True)
    less = page.note(f"The first {MAX_ROWS} of {len(trials)}.") if len(trials) > MAX_ROWS else ""
    return f'{less}<input type="search" data-table="trials" placeholder="filter, for example rigl">{table}'
