from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pytest

from distsparse.cli.main import main
from distsparse.results import figures, load, write, write_report
from distsparse.results.latencies import measured, side_by_side

pytest.importorskip("plotly")

CONFIG = {"method.name": pa.string(), "method.sparsity": pa.float64()}
EVIL = '"><img src=x onerror="throw new Error(1)"></script><script>throw new Error(2)</script>'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


WAYS = (("dense", 1, 1), ("csr", 1, 1), ("dense", 64, 2), ("csr", 64, 2))


def latency(form, batch_size, num_threads, dense_ms):
    """A row as `distsparse latency` writes it: CSR takes half the time, and its median did not settle."""
    median = dense_ms / 2 if form == "csr" else dense_ms
    return {
        **{"format": form, "batch_size": batch_size, "num_threads": num_threads, "dtype": "float32"},
        **{"p10_ms": median * 0.9, "p50_ms": median, "p90_ms": median * 1.3, "stable": form == "dense"},
        **{"hostname": "box", "cpu": EVIL, "num_cpus": 4},
    }


def add(root, key, method, sparsity, seed, accuracy):
    row = {
        **{"status": "completed", "seed": seed, "accuracy": accuracy, "sparsity": sparsity or 0.0},
        **{"requested_sparsity": sparsity, "latency_ms": 2 - (sparsity or 0.0) + seed / 10},
        **{"method.name": method, "method.sparsity": sparsity},
    }
    for table, rows in {
        "steps": [
            {"step": s, "train_loss": 1 / s, "test_accuracy": accuracy - 0.01 / s} for s in (10, 20, 30)
        ],
        "layers": [{"layer": name, "sparsity": sparsity or 0.0} for name in ("first", EVIL)],
        "rewires": [
            {"step": s, "layer": "first", "num_grown": 4, "num_dropped": 4, "nnz": 20} for s in (0, 10)
        ],
        "latencies": [latency(*way, 2 - (sparsity or 0.0)) for way in WAYS if sparsity or way[0] == "dense"],
    }.items():
        write(root, study="s", trial=key, table=table, rows=rows)
    write(root, study="s", trial=key, table="trials", rows=[row], config_columns=CONFIG)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    place = 0
    for method, sparsity in (("dense", None), ("set", 0.9), ("set", 0.98), (EVIL, 0.9), (EVIL, 0.98)):
        for seed in range(4):
            add(root, f"{place:012x}", method, sparsity, seed, 0.95 - (sparsity or 0) / 50 + seed / 400)
            place += 1
    failed = {"status": "failed", "seed": 9, "error": f"ValueError: {EVIL}", "method.name": "set"}
    write(root, study="s", trial="f" * 12, table="trials", rows=[failed], config_columns=CONFIG)
    return root


@pytest.fixture(scope="module")
def page(study):
    path = study.parent / "report.html"
    assert write_report(study, path) == path
    return path


def figures_of(text):
    pattern = r'<script type="application/json" id="(figure-\d+)-data">(.*?)</script>'
    return {name: json.loads(data) for name, data in re.findall(pattern, text, re.DOTALL)}


def without_plotly(text):
    from plotly.offline import get_plotlyjs

    assert get_plotlyjs() in text
    return text.replace(get_plotlyjs(), "")


def test_the_page_stands_alone(page):
    text = without_plotly(page.read_text())
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert not re.search(r"<(link|iframe|object|embed)\b|@import|\bsrc=(?!x )", text)
    assert "default-src 'none'" in text
    assert page.stat().st_size < 8_000_000


def test_user_strings_are_escaped_everywhere(page):
    text = without_plotly(page.read_text())
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == len(figures_of(text)) + 2
    assert html.escape(EVIL) in text
    hover = [words for part in figures_of(text)["figure-0"]["data"] for words in part.get("hovertext", [])]
    assert any(html.escape(EVIL) in words for words in hover)


def test_every_trial_has_a_row_and_every_link_leads_to_one(page):
    text = page.read_text()
    rows = re.findall(r'<tr id="trial-([0-9a-f]{12})"', text)
    assert len(rows) == len(set(rows)) == 21
    links = re.findall(r'href="#trial-([0-9a-f]+)"', text)
    assert set(links) == set(rows)


def test_every_point_names_its_trial(page):
    drawn = figures_of(page.read_text())
    # Three pairs and the three together, two curves, latencies of one thread and of two, importance, parallel
    # axes, two learning curves, layers, topology changes.
    assert len(drawn) == 14
    for figure in drawn.values():
        for part in figure["data"]:
            if part["type"] != "bar" and part.get("hoverinfo") != "skip":
                assert "customdata" in part, part["type"]


def test_numbers_of_the_figures_are_those_of_the_tables(study):
    from distsparse.results import completed, summarize

    trials = completed(load(study))
    curve = figures.sparsity_curves(trials, "accuracy", "method.name")
    table = summarize(trials, ["accuracy"], by=["method.name", "sparsity"])
    [line] = [part for part in curve.data if part.name == "set"]
    expected = table[table["method.name"] == "set"]
    assert list(line.y) == expected["accuracy_mean"].tolist()
    assert list(line.y + line.error_y.array) == pytest.approx(expected["accuracy_high"].tolist())
    assert list(line.x) == pytest.approx([1.0, 1.69897])  # -log10 of the density
    changes = figures.topology_timeline(load(study, "rewires"), trials, "method.name")
    assert list(changes.data[0].y) == [4 / 20]
    assert list(changes.data[0].x) == [10]
    heat = figures.layer_heat_map(load(study, "layers"), trials)
    assert heat.data[0].z.shape == (20, 2)


def test_latencies_are_those_of_the_table_with_formats_side_by_side(study, page):

    rows = measured(load(study, "latencies"))
    one = rows[rows["batch_size"] == 1]
    trials = load(study)
    csr, dense = figures.latency_by_format(one, trials).data
    assert (csr.name, dense.name) == ("csr", "dense")
    assert (len(csr.y), len(dense.y)) == (16, 20)
    for part in (csr, dense):
        own = one[one["format"] == part.name].set_index("trial").loc[list(part.customdata)]
        assert list(part.y) == own["p50_ms"].tolist()
        assert list(part.y + part.error_y.array) == pytest.approx(own["p90_ms"].tolist())
        assert list(part.y - part.error_y.arrayminus) == pytest.approx(own["p10_ms"].tolist())
    assert {symbol.endswith("-open") for symbol in csr.marker.symbol} == {True}
    assert {symbol.endswith("-open") for symbol in dense.marker.symbol} == {False}
    sparsity = trials.set_index("trial")["sparsity"]
    assert list(csr.x) == pytest.approx([-math.log10(1 - sparsity[key]) for key in csr.customdata])

    table = side_by_side(rows)
    assert len(table) == 40
    assert table["csr speed_up"].dropna().unique().tolist() == [2.0]
    dense_only = table[table["csr p50_ms"].isna()]
    assert dense_only["stable"].tolist() == [True] * 8
    assert not table.drop(dense_only.index)["stable"].any()
    text = page.read_text()
    shown = re.search(r"<h2>Latency by format</h2>.*?<tbody>(.*?)</tbody>", text, re.DOTALL)
    assert len(re.findall(r'href="#trial-', shown.group(1))) == 40
    assert f"batch of 64, 2 thread(s), float32, on box: {html.escape(EVIL)} (4 CPUs)" in text


def test_a_measurement_done_again_counts_once():
    row = {**latency("dense", 1, 1, 2.0), "study": "s", "trial": "a", "accelerator": None, "measured_at": 1}
    newer = {**row, "p50_ms": 3.0, "stable": None, "measured_at": 2}
    other = {**row, "hostname": "other"}
    rows = measured(pd.DataFrame([newer, row, other]))
    assert rows["p50_ms"].tolist() == [3.0, 2.0]
    assert side_by_side(rows)["stable"].isna().tolist() == [True, False]


def test_one_configuration_in_two_studies_has_a_report(tmp_path):
    for study in ("first", "second"):
        row = {"status": "completed", "seed": 0, "accuracy": 0.5, "sparsity": 0.9}
        times = [latency(name, 1, 1, 2.0) for name in ("dense", "csr")]
        write(tmp_path, study=study, trial="a" * 12, table="latencies", rows=times)
        write(tmp_path, study=study, trial="a" * 12, table="trials", rows=[row])
    rows = measured(load(tmp_path, "latencies"))
    assert len(rows) == 4
    assert side_by_side(rows)["study"].tolist() == ["first", "second"]
    assert "Latency by format" in write_report(tmp_path, tmp_path / "r.html").read_text()


def test_the_command_writes_and_explains(study, tmp_path, capsys, monkeypatch):
    output = tmp_path / "deep" / "r.html"
    options = ["--maximize", "accuracy", "--minimize", "sparsity"]
    assert main(["report", str(study), "--output", str(output), *options]) == 0
    assert capsys.readouterr().out == f"wrote {output}\n"
    assert "latency_ms_mean" not in output.read_text()
    assert main(["report", str(study), "--output", str(output), "--maximize", "acuracy"]) == 2
    assert "unknown column 'acuracy'; close: accuracy" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert main(["report", str(study)]) == 2
    assert "pip install 'distsparse[report]'" in capsys.readouterr().err


def test_a_study_of_one_trial_has_a_report(tmp_path):
    row = {"status": "completed", "seed": 0, "accuracy": 0.5, "sparsity": 0.9, "method.name": "set"}
    write(tmp_path, study="s", trial="a" * 12, table="trials", rows=[row], config_columns=CONFIG)
    assert "All trials" in write_report(tmp_path, tmp_path / "r.html").read_text()
    write(tmp_path, study="t", trial="a" * 12, table="trials", rows=[{"status": "failed"}])
    with pytest.raises(ValueError, match="no trial completed: nothing to report"):
        write_report(tmp_path / "t", tmp_path / "r.html")


def test_a_trial_that_was_ended_early_is_no_failure(tmp_path):
    for key, status in (("a", "completed"), ("b", "stopped"), ("c", "failed")):
        row = {"status": status, "seed": 0, "accuracy": 0.5, "sparsity": 0.9, "error": f"error of {key}"}
        write(tmp_path, study="s", trial=key * 12, table="trials", rows=[row])
    text = write_report(tmp_path, tmp_path / "r.html").read_text()
    assert "1 of 3 trials completed, 1 stopped, 1 failed" in text
    assert "error of c" in text
    assert "error of b" not in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_draws_every_figure_and_runs_no_string_of_a_user(page, tmp_path):
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-unsafe-swiftshader", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--virtual-time-budget=60000", "--timeout=240000", "--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    dom = without_plotly(done.stdout)
    assert '<div id="errors"></div>' in dom
    assert dom.count('data-drawn="yes"') == 14
    assert "<img src" not in dom
    # Every trial of the plot of two objectives is a point in the page.
    assert len(re.findall(r'class="point\b', dom)) >= 3 * 20
