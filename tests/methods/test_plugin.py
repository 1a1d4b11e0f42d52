"""A method in another package, one file and an entry point, is a method like the shipped ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distsparse import results

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "your_own_method.md"
NAME = "neuron_set"


def package(folder: Path, module: str, code: str, *, entry_point: str) -> Path:
    """An installed package: a module and the metadata that pip writes beside it."""
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / f"{module}.py").write_text(code)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[distsparse.methods]\n{entry_point}\n")
    return folder


def documented() -> tuple[str, str]:
    """The method's file and the entry point, as the page has them."""
    page = PAGE.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (toml,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    header, line = toml.strip().splitlines()
    assert header == '[project.entry-points."distsparse.methods"]'
    return code, line.partition("#")[0].replace('"', "").strip()


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    code, entry_point = documented()
    return package(tmp_path_factory.mktemp("plugin"), NAME, code, entry_point=entry_point)


def python(*arguments: object, installed: Path | None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    path = [*([str(installed)] if installed else []), os.environ["PYTHONPATH"]]
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_file_is_short() -> None:
    code, _ = documented()
    assert len(code.splitlines()) < 40


def test_the_command_line_lists_it_with_its_parameters(plugin: Path) -> None:
    done = python("-m", "distsparse", "methods", installed=plugin)
    assert done.returncode == 0, done.stderr
    (block,) = [text for text in done.stdout.split("\n\n") if text.startswith(f"{NAME}:")]
    assert "SET that spares weak neurons" in block
    assert "power = 0.5  (float ≥ 0, ≤ 1)\n      0 ranks by magnitude" in block
    assert "\nrigl:" in done.stdout
    assert NAME not in python("-m", "distsparse", "methods", installed=None).stdout


SMALL = {
    "train.epochs": 2, "method.delta_T": 7, "model.hidden": "[16]", "latency.measure": "false",
    "launch.num_threads": 1,
}  # fmt: skip


def trained(folder: Path, *, installed: Path | None, **method: Any) -> subprocess.CompletedProcess[str]:
    values = {**SMALL, **{f"method.{name}": value for name, value in method.items()}}
    settings = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    return python("-m", "distsparse", "train", "--output", "runs", *settings, installed=installed, cwd=folder)


def test_it_trains_and_its_row_is_read_with_and_without_it(plugin: Path, tmp_path: Path) -> None:
    """Rows of one study, one written with the plug-in installed and one without, are one table."""
    done = trained(tmp_path, installed=plugin, name=NAME, power=0.25)
    assert done.returncode == 0, done.stdout + done.stderr
    done = trained(tmp_path, installed=None, name="set")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = results.load(tmp_path / "runs").set_index("method.name")
    assert trials.loc[NAME, "status"] == "completed"
    assert trials["method.power"].to_dict()[NAME] == 0.25
    assert trials["method.power"].isna().to_dict() == {NAME: False, "set": True}
    assert trials["method.delta_T"].tolist() == [7, 7]
    assert trials.loc[NAME, "sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert trials.loc[NAME, "num_updates"] > 2
    assert json.loads(trials.loc[NAME, "config"])["method"]["power"] == 0.25


def test_a_bad_value_of_it_is_one_clear_line(plugin: Path, tmp_path: Path) -> None:
    done = trained(tmp_path, installed=plugin, name=NAME, power=2)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "distsparse: error: method.power = 2: input should be less than or equal to 1\n"
    done = trained(tmp_path, installed=None, name=NAME)
    assert done.returncode == 2
    assert f"unknown method {NAME!r}" in done.stderr


def test_a_sweep_varies_its_own_keyword(plugin: Path) -> None:
    script = f"""
import json
from distsparse.sweep import parse_space
domains = {{"method.name": {{"choice": ["rigl", "{NAME}"]}}, "method.power": {{"uniform": [0, 1]}},
           "method.sparsity": {{"choice": [0.5, 0.9]}}}}
configs = parse_space({{"space": domains, "num_samples": 12}}).configs()
print(json.dumps([config.to_dict()["method"] for config in configs]))
"""
    done = python("-c", script, installed=plugin)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    own = [method["power"] for method in found if method["name"] == NAME]
    assert len(set(own)) > 3
    assert all(0 <= power <= 1 for power in own)
    others = [method for method in found if method["name"] == "rigl"]
    assert {method["sparsity"] for method in others} == {0.5, 0.9}
    assert all("power" not in method for method in others)


def test_the_conformance_suite_takes_it_up(plugin: Path) -> None:
    suite = "tests/methods/test_conformance.py"
    done = python("-m", "pytest", suite, "-k", NAME, "-p", "no:cacheprovider", installed=plugin)
    assert done.returncode == 0, done.stdout
    found = re.search(r"(\d+) passed", done.stdout)
    assert found
    assert int(found[1]) > 10
    assert "failed" not in done.stdout


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_package_that_is_not_there", "ModuleNotFoundError: No module named 'a_package_that"),
        (
            "from distsparse.methods import method, static\n@method('rigl')\ndef own(): ...",
            "AssertionError: method 'rigl' is registered twice",
        ),
    ],
)
def test_one_that_cannot_be_loaded_is_named(code: str, reason: str, tmp_path: Path) -> None:
    package(tmp_path, "broken", code, entry_point="own = broken")
    done = python("-m", "distsparse", "train", installed=tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "entry point 'own' of distsparse.methods (broken) cannot be loaded: " in line
    assert reason in line
