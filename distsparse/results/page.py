"""The parts of a self-contained HTML page: tables, figures, sections; what goes in is escaped here."""

from __future__ import annotations

import html
import itertools
from collections.abc import Collection, Iterator, Sequence
from importlib.resources import files
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from distsparse.results.figures import text

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:; form-action 'none'; base-uri 'none'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<div id="errors"></div>
<header><h1>{title}</h1><p>{subtitle}</p></header>
<nav>{navigation}</nav>
<main>{body}</main>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def page(title: str, subtitle: str, cards: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return the whole page: cards at the top, then (heading, content) sections.

    Nothing is fetched: plotly is inside, and the page's policy forbids every connection.
    """
    from plotly.offline import get_plotlyjs

    here = files("distsparse.results")
    anchors = [f"section-{place}" for place in range(len(sections))]
    return PAGE.format(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        style=here.joinpath("report.css").read_text(),
        navigation="".join(
            f'<a href="#{anchor}">{html.escape(heading)}</a>'
            for anchor, (heading, _) in zip(anchors, sections, strict=True)
        ),
        body=cards
        + "".join(
            f'<section id="{anchor}"><h2>{html.escape(heading)}</h2>{content}</section>'
            for anchor, (heading, content) in zip(anchors, sections, strict=True)
        ),
        plotly=get_plotlyjs(),
        script=here.joinpath("report.js").read_text(),
    )


def card(what: str, value: str, origin: str) -> str:
    """Return a number to see first, with where it comes from (already HTML)."""
    return (
        f'<div class="card"><div class="what">{html.escape(what)}</div>'
        f'<div class="value">{html.escape(value)}</div><div class="from">{origin}</div></div>'
    )


def note(words: str) -> str:
    """Return a paragraph that says how to read what follows."""
    return f'<p class="note">{html.escape(words)}</p>'


def trial_link(key: str) -> str:
    """Return a link to a trial's row in the table of all trials."""
    key = html.escape(key)
    return f'<a class="trial" data-key="{key}" href="#trial-{key}">{key}</a>'


class Figures:
    """Numbers the figures of one page."""

    def __init__(self) -> None:
        self._numbers: Iterator[int] = itertools.count()

    def add(self, figure: Any, *, height: int = 430) -> str:
        """Return a plotly figure as HTML: a place for it, and its data as JSON."""
        figure.update_layout(
            template="plotly_white",
            height=height,
            margin={"l": 60, "r": 20, "t": 30, "b": 50},
            font={"family": "system-ui, Segoe UI, DejaVu Sans, sans-serif", "size": 12},
            hoverlabel={"align": "left", "font": {"size": 12}},
            hovermode="closest",
            legend={"orientation": "h", "y": -0.18, "itemsizing": "constant"},
        )
        name = f"figure-{next(self._numbers)}"
        # Inside a script element, only a "<" could end it.
        data = figure.to_json().replace("<", "\\u003c")
        return (
            f'<div class="figure" id="{name}" style="min-height:{height}px"></div>'
            f'<script type="application/json" id="{name}-data">{data}</script>'
        )


def table(
    frame: pd.DataFrame,
    columns: Sequence[str],
    *,
    name: str = "",
    marked: Collection[Any] = (),
    anchors: bool = False,
) -> str:
    """Return columns of a frame as an HTML table that sorts by click.

    Columns ``trial`` and ``trials`` become links. ``marked`` rows (by index) are tinted; with ``anchors``
    rows are what those links lead to.
    """
    numeric = {column: is_numeric_dtype(frame[column]) for column in columns}
    head = "".join(
        f"<th{' class=number' if numeric[column] else ''}>{_breakable(column)}</th>" for column in columns
    )
    rows = []
    for index, row in zip(frame.index, frame.to_dict("records"), strict=True):
        kind = ' class="knee"' if index in marked else ""
        anchor = f' id="trial-{html.escape(str(row["trial"]))}"' if anchors else ""
        cells = "".join(_cell(column, row[column], numeric=numeric[column]) for column in columns)
        rows.append(f"<tr{anchor}{kind}>{cells}</tr>")
    identity = f' id="{name}"' if name else ""
    return (
        f'<div class="scroll"><table{identity}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _breakable(name: str) -> str:
    """Return an escaped column name that may break behind a dot or an underscore."""
    return html.escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _cell(column: str, value: Any, *, numeric: bool) -> str:
    if column in ("trial", "trials"):
        return f"<td class=trials>{' '.join(map(trial_link, str(value).split()))}</td>"
    if numeric:
        missing = value is pd.NA or value is None or value != value
        return f'<td class="number" data-value="{"NaN" if missing else float(value)}">{text(value)}</td>'
    return f"<td{' class=error' if column == 'error' else ''}>{text(value)}</td>"
