from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from parts import TINY, tiny

from distsparse.cli.main import main
from distsparse.config import COMPONENTS, SECTIONS, allowed_workers, columns, override, parse


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", init)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused; return its one line."""
    assert main(arguments) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("distsparse: error: ")
    assert error.count("\n") == 1
    return error


BAD: dict[str, tuple[list[str], list[str]]] = {
    "sparsity": (["method.sparsity=1.2"], ["method.sparsity = 1.2", "less than 1"]),
    "sparsity is text": (["method.sparsity=high"], ["method.sparsity = 'high'", "number"]),
    "delta_T": (["method.delta_T=0"], ["method.delta_T = 0", "greater than 0"]),
    "delta_T is no whole number": (["method.delta_T=1.5"], ["method.delta_T = 1.5", "integer"]),
    "alpha": (["method.alpha=-1"], ["method.alpha = -1", "greater than 0"]),
    "unknown key": (["method.delta_t=5"], ["'method.delta_t'", "did you mean 'delta_T'", "alpha"]),
    "another method's key": (
        ["method.name=static", "method.delta_T=5"],
        ["'method.delta_T'", "sparsity"],
    ),
    "unknown section": (["metod.alpha=0.5"], ["'metod.alpha'", "did you mean 'method'"]),
    "unknown whole section": (["metod={}"], ["'metod'", "did you mean 'method'", "optimizer"]),
    "unknown model": (["model.name=lenet6"], ["model.name = 'lenet6'", "did you mean 'lenet5'", "resnet18"]),
    "model that cannot be imported": (["model.name=parts:nobody"], ["model.name", "parts:nobody"]),
    "unknown method": (["method=rigel"], ["method.name = 'rigel'", "did you mean 'rigl'", "static"]),
    "unknown optimizer": (["optimizer.name=sdg"], ["optimizer.name = 'sdg'", "did you mean 'sgd'"]),
    "missing data folder": (["data={name: images, path: /no/such}"], ["/no/such"]),
    "T_end as a fraction": (["method.T_end=1.5"], ["method.T_end = 1.5", "fraction of the run in (0, 1]"]),
    "T_end in steps": (["method.T_end=141"], ["method.T_end = 141", "up to the run's 140"]),
    "nothing to sparsify": (["model.name=parts:nothing"], ["sparsify", "nothing to sparsify", "Sequential"]),
    "include": (["sparsify.include=[conv*]"], ["sparsify", "'conv*'", "1.weight"]),
    "include is empty": (["sparsify.include=[]"], ["sparsify.include = []", "at least 1"]),
    "batch_size": (["train.batch_size=101"], ["train.batch_size = 101", "multiple of 2"]),
    "batch_size over micro-batches": (
        ["train.batch_size=10", "train.accumulation=4"],
        ["train.batch_size = 10", "multiple of 8"],
    ),
    "more min_workers than workers": (
        ["launch.min_workers=3"],
        ["launch.min_workers = 3", "at most launch.workers, which is 2"],
    ),
    "no min_workers": (["launch.min_workers=0"], ["launch.min_workers = 0", "greater than 0"]),
    "batch_size over the data": (["train.batch_size=2000"], ["train.batch_size = 2000", "1437"]),
    "precision": (["train.precision=fp8"], ["train.precision = 'fp8'", "'fp32'"]),
    "infinite": (["train.clip_norm=.inf"], ["train.clip_norm = inf", "finite"]),
    "bool for a number": (["train.epochs=true"], ["train.epochs = True", "integer"]),
    "a date": (["train.epochs=2026-01-01"], ["train", "date"]),
    "a date in a component": (["method.alpha=2026-01-01"], ["method.alpha", "date"]),
    "min_lr": (["lr_schedule.min_lr=5"], ["lr_schedule.min_lr = 5", "optimizer.lr = 0.1"]),
    "seed": (["seed=-1"], ["seed = -1", "at least 0"]),
    "study": (["study=../x"], ["study = '../x'", "letters"]),
    "no section": (["train=fast"], ["train = 'fast'", "mapping"]),
    "wandb": (["loggers.wandb=true"], ["loggers.wandb = True", "'online'", "'offline'"]),
    "unknown tracker": (["loggers.tensorbord=true"], ["'loggers.tensorbord'", "did you mean 'tensorboard'"]),
    "nothing in a section": (["train=", "train.epochs=1"], ["train = None", "mapping"]),
    "no name": (["model.name=3"], ["model.name = 3", "text"]),
    "no component": (["model=[mlp]"], ["model = ['mlp']", "name"]),
    "a path too deep": (["method.alpha.x=1"], ["'method.alpha.x'"]),
    "no assignment": (["method.alpha"], ["--set method.alpha", "path=value"]),
    "given twice": (["seed=1", "seed=2"], ["--set seed", "twice"]),
    "no YAML": (["model={"], ["--set model={", "YAML"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_value_is_one_line_before_anything_starts(
    case: str, no_ray: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assignments, expected = BAD[case]
    options = [part for assignment in assignments for part in ("--set", assignment)]
    error = refused(["train", "--workers", "2", "--output", str(tmp_path / "runs"), *options], capsys)
    for text in expected:
        assert text in error
    assert not (tmp_path / "runs").exists()


def test_negative_workers(no_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "launch.workers = -1" in refused(["train", "--workers", "-1"], capsys)


def test_unreadable_parquet(no_ray: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").write_bytes(b"PAR1 this is no table PAR1")
    error = refused(["train", "--set", f"data={{name: images, path: {tmp_path}}}"], capsys)
    assert str(tmp_path / "train.parquet") in error


def test_unknown_path_in_a_space(no_ray: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("space: {method.delta_t: {choice: [5, 10]}}")
    error = refused(["sweep", str(space), "--output", str(tmp_path / "runs")], capsys)
    assert "'method.delta_t'" in error
    assert "did you mean 'delta_T'" in error


def test_a_trial_of_a_space_that_cannot_run(
    no_ray: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Only the data says that step 141 lies past a run of 10 epochs."""
    space = tmp_path / "space.yaml"
    space.write_text("space: {method.T_end: {grid: [140, 141]}}\nsearch: grid")
    error = refused(["sweep", str(space), "--output", str(tmp_path / "runs")], capsys)
    assert "method.T_end = 141" in error
    assert not (tmp_path / "runs").exists()


def test_output_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = [f"{section}={json.dumps(value)}" for section, value in TINY.items()]
    arguments = [part for option in options for part in ("--set", option)]
    assert main(["train", *arguments, "--output", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_bad_value_in_a_process_of_its_own(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "distsparse", "train", "--workers", "2", "--set", "method.sparsity=1.2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "distsparse: error: method.sparsity = 1.2: input should be less than 1\n"
    assert list(tmp_path.iterdir()) == []


YAML_FILES: dict[str, tuple[str | None, str]] = {
    "key twice": ("seed: 1\nseed: 2\n", "seed"),
    "list": ("- seed\n", "mapping"),
    "text": ("seed\n", "mapping"),
    "empty": ("", "mapping"),
    "not YAML": ("model: {\n", "YAML"),
    "missing": (None, "cannot be read"),
}


@pytest.mark.parametrize("case", YAML_FILES)
def test_bad_file(case: str, no_ray: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text, expected = YAML_FILES[case]
    file = tmp_path / "run.yaml"
    if text is not None:
        file.write_text(text)
    error = refused(["train", str(file)], capsys)
    assert str(file) in error
    assert expected in error


def test_binary_file(no_ray: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    assert "run.yaml" in refused(["train", str(tmp_path / "run.yaml")], capsys)


def test_defaults_are_complete() -> None:
    config = parse({})
    assert (config.study, config.seed) == ("default", 0)
    assert (config.model.name, config.data.name, config.method.name) == ("mlp", "digits", "rigl")
    assert config.method.params["delta_T"] == 100
    assert config.train.epochs == 10
    assert config.launch.workers == 0


def test_round_trip() -> None:
    config = tiny({"method.alpha": 0.25, "sparsify.exclude": ["5.*"], "study": "s", "seed": 3})
    plain = json.loads(json.dumps(config.to_dict()))
    assert parse(plain) == config
    assert parse(plain).to_dict() == config.to_dict()
    assert parse(plain).key == config.key


@pytest.mark.parametrize(
    ("workers", "min_workers", "batch_size", "allowed"),
    [
        (8, 3, 256, [4, 8]),
        (4, 1, 120, [1, 2, 3, 4]),
        (4, 1, 100, [1, 2, 4]),
        (2, None, 10, [2]),
        (2, 2, 10, [2]),
    ],
)
def test_allowed_workers_share_a_batch_equally(
    workers: int, min_workers: int | None, batch_size: int, allowed: list[int]
) -> None:
    launch = {"launch.workers": workers, "launch.min_workers": min_workers}
    assert allowed_workers(tiny({"train.batch_size": batch_size} | launch)) == allowed


def test_min_workers_that_cannot_share_a_batch() -> None:
    values = {"launch.workers": 4, "launch.min_workers": 3, "train.batch_size": 40}
    with pytest.raises(
        ValueError, match=r"^launch\.min_workers = 3: train\.batch_size = 40 .* from there to 3$"
    ):
        tiny(values)


def test_how_often_a_run_begins_again_makes_no_other_trial() -> None:
    config = tiny({"launch.workers": 2})
    again = override(
        config,
        {
            "launch.max_failures": 0,
            "launch.timeout_s": 5.0,
            "launch.min_workers": 1,
            "checkpoint.keep": 3,
        },
    )
    assert again.key == config.key
    assert override(config, {"launch.cpus_per_worker": 2.0}).key != config.key


def test_override_replaces_a_section() -> None:
    base = parse({"method": {"name": "rigl", "delta_T": 7, "alpha": 0.1}, "train": {"epochs": 3}})
    config = override(base, {"method": {"name": "set", "alpha": 0.5}, "train": {"batch_size": 20}})
    assert config.method.name == "set"
    assert config.method.params["alpha"] == 0.5
    assert config.method.params["delta_T"] == 100
    assert (config.train.epochs, config.train.batch_size) == (10, 20)


def test_override_of_the_name_keeps_what_was_given_and_fits() -> None:
    base = parse({"method": {"name": "rigl", "sparsity": 0.8, "delta_T": 7, "grad_accumulation": 2}})
    config = override(base, {"method.name": "set"})
    assert config.method.params["sparsity"] == 0.8
    assert config.method.params["delta_T"] == 7
    assert "grad_accumulation" not in config.method.params
    # rigl's own default "erk" was never given: set's own holds.
    assert config.method.params["allocation"] == "er"
    assert config.method.params["alpha_schedule"] == "constant"
    assert override(base, {"method.name": "dense"}).method.params == {}


def test_override_of_the_default_name() -> None:
    base = parse({"method": {"grad_accumulation": 2, "alpha": 0.2}})  # rigl, unsaid
    assert override(base, {"method.name": "rigl"}).method.params["grad_accumulation"] == 2
    assert override(base, {"method.name": "set"}).method.params["alpha"] == 0.2


def test_override_takes_names_before_keywords() -> None:
    """A keyword of the new method may stand before its name."""
    values = {"method.allocation": "uniform", "method.name": "set", "method": {"name": "dense"}}
    for order in (list(values), list(values)[::-1]):
        config = override({}, {name: values[name] for name in order})
        assert (config.method.name, config.method.params["allocation"]) == ("set", "uniform")


def test_override_of_a_component_given_as_text() -> None:
    assert override({"method": "set"}, {"method.alpha": 0.2}).method.name == "set"


def test_override_leaves_its_base_alone() -> None:
    base = {"method": {"name": "set"}, "sparsify": {"include": ["*"]}}
    config = parse(base)
    override(base, {"method.alpha": 0.2, "sparsify.include": ["1.*"]})
    override(config, {"method.alpha": 0.2})
    assert base == {"method": {"name": "set"}, "sparsify": {"include": ["*"]}}
    assert config.method.params["alpha"] == 0.3


def test_set_values_are_yaml(no_ray: None) -> None:
    from distsparse.cli.files import parse_assignments

    text = ["a=1e-4", "b=[300, 100]", "c=true", "d=null", "e=no", "f=text", "g={name: set}", "h=", "i=x=y"]
    assert parse_assignments(text) == {
        "a": 1e-4,
        "b": [300, 100],
        "c": True,
        "d": None,
        "e": "no",
        "f": "text",
        "g": {"name": "set"},
        "h": None,
        "i": "x=y",
    }


def test_key_is_of_what_determines_the_network() -> None:
    base = tiny()
    same = {"study": "other", "checkpoint.every_steps": 5, "checkpoint.keep": 1, "latency.measure": True}
    same |= {"loggers.tensorboard": True, "loggers.tags": ["mine"], "loggers.mlflow_uri": "http://host"}
    for path, value in same.items():
        assert override(base, {path: value}).key == base.key, path
    other = {"seed": 1, "method.alpha": 0.2, "model.hidden": [17], "train.epochs": 3, "launch.workers": 2}
    keys = {override(base, {path: value}).key for path, value in other.items()}
    assert len(keys | {base.key}) == len(other) + 1


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:geheim@mlflow.internal",
        "https://geheim@mlflow.internal",
        "mysql://host/db?user=me&password=geheim",
        "https://host?token=geheim",
    ],
)
def test_a_password_is_refused_and_not_repeated(
    uri: str, no_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["train", "--set", f"loggers.mlflow_uri={uri}"], capsys)
    assert "loggers.mlflow_uri: must not hold a password" in error
    assert "geheim" not in error


@pytest.mark.parametrize("uri", ["s3://me:geheim@bucket/runs", "s3://bucket/runs?secret_key=geheim"])
def test_a_key_of_a_store_is_refused_and_not_repeated(
    uri: str, no_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["train", "--set", f"checkpoint.storage={uri}"], capsys)
    assert "checkpoint.storage: must not hold a password or a key" in error
    assert "geheim" not in error


def test_key_does_not_depend_on_what_was_said_or_in_which_order() -> None:
    first = parse({"seed": 1, "method": {"name": "rigl", "alpha": 0.3}, "train": {"epochs": 10}})
    second = parse({"train": {}, "method": "rigl", "seed": 1})
    assert first.key == second.key
    assert len(first.key) == 12
    assert int(first.key, 16) >= 0


def test_key_is_equal_in_another_process() -> None:
    code = "from distsparse.config import parse; print(parse({'seed': 5, 'method': 'set'}).key)"
    keys = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert keys == {parse({"seed": 5, "method": "set"}).key}


def test_flat_is_by_dotted_name() -> None:
    flat = tiny({"method.alpha": 0.25}).flat()
    assert flat["method.name"] == "rigl"
    assert flat["method.alpha"] == 0.25
    assert flat["model.hidden"] == "[16]"
    assert flat["sparsify.include"] == '["*"]'
    assert flat["train.clip_norm"] is None
    assert flat["seed"] == 0
    assert all(value is None or isinstance(value, (str, int, float)) for value in flat.values())


def test_columns_cover_every_configuration() -> None:
    found = columns()
    for kind, (registry, _) in COMPONENTS.items():
        assert f"{kind}.name" in found
        for entry in registry:
            assert {f"{kind}.{name}" for name in entry.schema.model_fields} <= found.keys()
    assert {f"{name}.{key}" for name in SECTIONS for key in SECTIONS[name].model_fields} <= found.keys()
    assert parse({}).flat().keys() <= found.keys()
    assert found["method.delta_T"] is int
    assert found["train.label_smoothing"] is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 0.9}, r"unknown key 'sparsity' \(did you mean 'method.sparsity'\?\)"),
        ({"epochs": 3}, r"unknown key 'epochs' \(did you mean 'train.epochs'\?\)"),
        ({"space": {}}, "this is a sweep's space; run it with `distsparse sweep`"),
    ],
)
def test_a_key_in_the_wrong_place_is_told_where_it_belongs(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(values)
