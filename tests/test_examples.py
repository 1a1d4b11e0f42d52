from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distsparse.config import parse
from distsparse.launch import run

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_notebook_goes_from_a_real_study_to_a_decision(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("duckdb")
    base = {
        "study": "demo",
        "train": {"epochs": 2, "batch_size": 50},
        "model": {"name": "mlp", "hidden": [50]},
    }
    for method in ({"name": "dense"}, {"name": "set", "sparsity": 0.9}, {"name": "rigl", "sparsity": 0.98}):
        for seed in (0, 1):
            run(parse({**base, "method": method, "seed": seed}), tmp_path / "demo")
    monkeypatch.setenv("STUDY", os.fspath(tmp_path / "demo"))
    notebook = nbformat.read(REPOSITORY / "examples" / "analyze.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
    shown = "\n".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "6 trials," in shown
    assert "ship " in shown or "nothing is within one point of dense" in shown


def test_the_notebook_was_executed_without_an_error():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(REPOSITORY / "examples" / "analyze.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not any(output.output_type == "error" for output in outputs)


def test_the_loop_of_two_processes():
    example = REPOSITORY / "examples" / "ddp.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, example], capture_output=True, text=True, timeout=200, check=True)
    assert "1,894 of 18,944 weights active, step 1000 of 1000" in done.stdout
    assert float(re.search(r"accuracy ([\d.]+)", done.stdout).group(1)) > 0.9
    sent, dense = map(float, re.search(r"sent: ([\d.]+) MB.* ([\d.]+)\n", done.stdout).groups())
    assert 0.1 < sent / dense < 0.2
