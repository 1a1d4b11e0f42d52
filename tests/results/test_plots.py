from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from distsparse.results import pareto_plot, plots


def frame(num_trials=24, seed=0):
    rng = np.random.default_rng(seed)
    sparsity = rng.choice([0.5, 0.9, 0.98], num_trials)
    return pd.DataFrame(
        {
            "study": "mnist",
            "status": "completed",
            "accuracy": 0.98 - 0.02 * sparsity**8 - rng.uniform(0, 0.005, num_trials),
            "sparsity": sparsity,
            "latency_ms": 3 * (1 - sparsity) * rng.uniform(0.9, 1.1, num_trials),
            "method.name": rng.choice(["rigl", "set", "static"], num_trials),
            "method.alpha": rng.uniform(0, 1, num_trials),
        }
    )


def figure(trials, maximize, minimize, color=None):
    return plots._figure(trials, maximize, minimize, color)


def panels(drawn):
    return [axes for axes in drawn.axes if axes.get_visible() and axes.get_xlabel()]


def stairs(panel):
    [line] = panel.get_lines()
    return line


@pytest.mark.parametrize("color", ["method.name", "method.alpha", None])
@pytest.mark.parametrize("minimize", [[], ["latency_ms"]])
def test_plot_is_a_png_of_150_dpi_that_shows_something(tmp_path, color, minimize):
    path = tmp_path / "new" / "front.png"
    written = pareto_plot(
        frame(), maximize=["accuracy", "sparsity"], minimize=minimize, color=color, path=path
    )
    assert written == path
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    assert [child.name for child in path.parent.iterdir()] == ["front.png"]


@pytest.mark.parametrize(("suffix", "start"), [(".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_the_file_is_of_the_kind_its_name_says(tmp_path, suffix, start):
    path = pareto_plot(frame(), maximize=["accuracy", "sparsity"], path=tmp_path / f"front{suffix}")
    assert path.read_bytes().startswith(start)


def test_a_failed_plot_leaves_the_old_file(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "front.png"
    path.write_bytes(b"old")

    def fail(self, file, **options):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="no space"):
        pareto_plot(frame(), maximize=["accuracy", "sparsity"], path=path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_three_objectives_have_a_panel_per_pair():
    drawn = figure(frame(), ["accuracy", "sparsity"], ["latency_ms"])
    labels = [(panel.get_xlabel(), panel.get_ylabel()) for panel in panels(drawn)]
    assert labels == [
        ("Sparsity →", "Test accuracy →"),
        ("Latency of one sample (ms) ←", "Test accuracy →"),
        ("Latency of one sample (ms) ←", "Sparsity →"),
    ]


def test_the_line_goes_through_the_front_of_the_pair_and_bounds_what_it_dominates():
    trials = pd.DataFrame({"a": [1.0, 2.0, 3.0, 1.5], "b": [9.0, 8.0, 4.0, 3.0], "c": [5.0, 4.0, 3.0, 1.0]})
    up, down = panels(figure(trials, ["a"], ["c"]))[0], panels(figure(trials, ["a", "b"], []))[0]
    assert stairs(up).get_xydata().tolist() == [[1.0, 1.5], [3.0, 3.0]]  # x = c is minimized
    assert stairs(up).get_drawstyle() == "steps-post"
    assert stairs(down).get_xydata().tolist() == [[4.0, 3.0], [8.0, 2.0], [9.0, 1.0]]  # x = b is maximized
    assert stairs(down).get_drawstyle() == "steps-pre"


def test_only_completed_trials_with_finite_objectives_are_drawn():
    trials = frame(6)
    trials.loc[0, "status"] = "failed"
    trials.loc[1, "latency_ms"] = np.nan
    trials.loc[2, "latency_ms"] = np.inf
    assert plots._drawable(trials, ["accuracy", "latency_ms"]).index.tolist() == [3, 4, 5]


def test_title_counts_the_front_and_names_a_single_study():
    trials = pd.DataFrame({"study": "s", "a": [1.0, 2.0, 0.0], "b": [2.0, 1.0, 0.0]})
    assert figure(trials, ["a", "b"], []).get_suptitle() == "s: 2 of 3 trials on the Pareto front"
    trials.loc[0, "study"] = "t"
    assert figure(trials, ["a", "b"], []).get_suptitle() == "2 of 3 trials on the Pareto front"


def test_axes_over_two_decades_are_logarithmic():
    trials = pd.DataFrame({"a": [1.0, 101.0], "b": [1.0, 99.0], "sparsity": [0.0, 0.99]})
    [panel] = panels(figure(trials, ["a"], ["b"]))
    assert (panel.get_yscale(), panel.get_xscale()) == ("log", "linear")
    [panel] = panels(figure(trials, ["b", "sparsity"], []))
    assert panel.get_xscale() == "function"
    assert [label.get_text() for label in panel.get_xticklabels()] == [
        *("0", "0.5", "0.8", "0.9", "0.95", "0.98", "0.99")
    ]
    trials["sparsity"] = [0.0, 1.0]
    [panel] = panels(figure(trials, ["b", "sparsity"], []))
    assert panel.get_xscale() == "linear"


def legend_texts(drawn):
    legends = [axes.get_legend() for axes in drawn.axes if axes.get_legend()] + drawn.legends
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_legend_names_the_categories_in_order():
    trials = frame()
    trials.loc[0, "method.name"] = None
    assert legend_texts(figure(trials, ["accuracy", "sparsity"], [], "method.name")) == [
        *("rigl", "set", "static", "no method.name", "Pareto front")
    ]


def test_many_numbers_have_a_colour_bar_and_few_a_legend():
    trials = frame()
    drawn = figure(trials, ["accuracy", "sparsity"], [], "method.alpha")
    assert [axes.get_ylabel() for axes in drawn.axes if not axes.get_xlabel()] == ["method.alpha"]
    assert legend_texts(drawn) == ["Pareto front"]
    assert legend_texts(figure(trials, ["accuracy"], ["latency_ms"], "sparsity")) == [
        *("0.5", "0.9", "0.98", "Pareto front")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maximize": ["accuracy"]}, "needs two objectives or more, not only 'accuracy'"),
        ({}, "no objective"),
        ({"maximize": ["accuracy", "sparsty"]}, "unknown column 'sparsty'; close: sparsity"),
        ({"maximize": ["accuracy", "sparsity"], "color": "method.nam"}, "unknown column 'method.nam'"),
        ({"maximize": ["accuracy", "sparsity"], "path": "front.jpeg"}, r"'front.jpeg'.*\.pdf, \.png, \.svg"),
        ({"maximize": ["accuracy", "nnz"]}, "no completed trial has a value for accuracy and nnz"),
        ({"maximize": ["accuracy", "sparsity"], "color": "config"}, "'config' has 33 values"),
    ],
)
def test_mistakes_are_explained_and_write_nothing(tmp_path, options, message):
    trials = frame(33).assign(nnz=np.nan, config=[str(i) for i in range(33)])
    options = {"path": tmp_path / "front.png", **options}
    with pytest.raises(ValueError, match=message):
        pareto_plot(trials, **options)
    assert list(tmp_path.iterdir()) == []


def test_importing_results_loads_no_matplotlib():
    script = "import sys, distsparse.results; print('matplotlib' in sys.modules)"
    repository = Path(__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", script], cwd=repository, capture_output=True, check=True)
    assert output.stdout.decode().strip() == "False"
