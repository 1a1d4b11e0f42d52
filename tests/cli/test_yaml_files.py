from __future__ import annotations

from pathlib import Path

import pytest

from distsparse.cli.files import parse_assignments, read_yaml


def test_yaml_1_2(tmp_path: Path) -> None:
    """1e-4 is a number and `no` is text, as their writer means them."""
    file = tmp_path / "run.yaml"
    file.write_text("lr: 1e-4\nname: no\nlist: [300, 100]\nflag: true\nnone: null\nα: ΔT\n", encoding="utf-8")
    expected = {"lr": 1e-4, "name": "no", "list": [300, 100], "flag": True, "none": None, "α": "ΔT"}
    assert read_yaml(file) == expected
    assert type(read_yaml(file)["list"]) is list


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "method: {alpha: 0.1, alpha: 0.2}\n"])
def test_key_twice_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"run\.yaml: .*(twice|duplicate)") as caught:
        read_yaml(tmp_path / "run.yaml")
    assert "\n" not in str(caught.value)


def test_place_of_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("seed: 1\nmodel: {name: mlp\ntrain: 3\n")
    with pytest.raises(ValueError, match=r"run\.yaml: is not valid YAML: .* \(line 3, column \d+\)"):
        read_yaml(tmp_path / "run.yaml")


def test_no_python_objects(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("seed: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match="is not valid YAML"):
        read_yaml(tmp_path / "run.yaml")


@pytest.mark.parametrize("assignment", ["method.alpha", "=3", ""])
def test_assignment_needs_path_and_value(assignment: str) -> None:
    with pytest.raises(ValueError, match=r"must be path=value"):
        parse_assignments([assignment])


def test_last_assignment_does_not_win_silently() -> None:
    with pytest.raises(ValueError, match=r"--set seed: given twice"):
        parse_assignments(["seed=1", "seed=1"])
