from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
from parts import TINY

import distsparse.sweep.run as sweep_run
from distsparse.cli.files import output_folder
from distsparse.cli.main import main
from distsparse.version import __version__

OPTIONS = {
    "train": ["CONFIG.yaml", "--set PATH=VALUE", "--workers N", "--output DIR", "--resume", "--address"],
    "sweep": ["SPACE.yaml", "--set PATH=VALUE", "--trials N", "--cpus N", "--output DIR", "--address"],
    "results": ["DIR", "--study"],
    "pareto": ["DIR", "--maximize", "--minimize", "--plot"],
    "methods": ["NAME"],
}


def ended(arguments: list[str]) -> int:
    """The exit code, also where argparse ends the process."""
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("name", OPTIONS)
def test_help_names_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in OPTIONS[name]:
        assert option in text
    assert f"usage: distsparse {name}" in text


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["--help"]) == 0
    text = capsys.readouterr().out
    for name in OPTIONS:
        assert f"\n    {name} " in text
    assert ended(["--version"]) == 0
    assert capsys.readouterr().out == f"distsparse {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["tran"], ["train", "--wrkers", "2"], ["train", "--workers", "two"], ["train", "a", "b"], ["sweep"]],
)
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(arguments) == 2
    assert "usage: distsparse" in capsys.readouterr().err


def test_help_loads_nothing_slow() -> None:
    """Reading about the options starts neither Ray nor what draws plots."""
    code = (
        "import sys\n"
        "from distsparse.cli.main import parser\n"
        "parser().format_help()\n"
        "print(*(name for name in ('ray', 'accelerate', 'sklearn', 'matplotlib') if name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "\n"


def settings(folder: Path, **values: object) -> str:
    file = folder / "run.yaml"
    file.write_text(json.dumps({**TINY, **values}))
    return str(file)


def test_train_prints_what_came_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = settings(tmp_path, latency={"measure": True})
    assert main(["train", file, "--output", str(tmp_path / "out"), "--set", "study=mine"]) == 0
    output, error = capsys.readouterr()
    trial = pd.read_parquet(tmp_path / "out" / "mine" / "trials").iloc[0]
    lines = output.splitlines()
    assert lines[0] == f"trial {trial['trial']} of study mine: rigl on parts:blobs"
    assert [line.split("  ")[0] for line in lines[1:3]] == ["epoch 1/2", "epoch 2/2"]
    assert f"accuracy {trial['accuracy']:.4f}  sparsity {trial['sparsity']:.4f}" in lines[3]
    assert f"{trial['nnz']:,} active weights" in lines[3]
    assert f"training FLOPs {trial['training_flops']:.3f}" in lines[3]
    assert f"latency {trial['latency_ms']:.3f} ms" in lines[4]
    assert lines[5:] == [f"network: {trial['checkpoint']}", f"tables:  {tmp_path / 'out' / 'mine'}"]
    # A log file: no bar, no carriage returns.
    assert error == ""
    assert "\r" not in output


def test_set_wins_over_the_file_and_workers_over_set(tmp_path: Path) -> None:
    file = settings(tmp_path, seed=1)
    options = ["--set", "seed=5", "--set", "launch.workers=3", "--workers", "0"]
    assert main(["train", file, "--output", str(tmp_path), *options]) == 0
    trial = pd.read_parquet(tmp_path / "default" / "trials").iloc[0]
    assert (trial["seed"], trial["launch.workers"]) == (5, 0)


def test_failed_run_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = settings(tmp_path, model={"name": "parts:failing", "at": 15})
    assert main(["train", file, "--output", str(tmp_path)]) == 1
    assert "failed: ArithmeticError: planted at call 15" in capsys.readouterr().out
    # Its checkpoint is there, and the fault is one of a process: the second life gets past it.
    assert main(["train", file, "--output", str(tmp_path), "--resume"]) == 0
    assert "resumed at step 12 of 24" in capsys.readouterr().out


def test_resume_of_a_completed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = settings(tmp_path)
    assert main(["train", file, "--output", str(tmp_path), "--resume"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert main(["train", file, "--output", str(tmp_path), "--resume"]) == 0
    second = capsys.readouterr().out.splitlines()
    assert second == first[-3:]
    assert "accuracy" in second[0]


def test_relative_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded path of the network is of use from anywhere."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", settings(tmp_path), "--output", "out"]) == 0
    trial = pd.read_parquet(tmp_path / "out" / "default" / "trials").iloc[0]
    assert Path(trial["checkpoint"]).is_absolute()
    assert (Path(trial["checkpoint"]) / "network.safetensors").is_file()


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_output_on_an_object_store_is_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a path it would be a folder named s3: below the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("space: {method.alpha: {uniform: [0.1, 0.5]}}")
    file = settings(tmp_path) if command == "train" else "space.yaml"
    assert main([command, file, "--output", "s3://bucket/runs"]) == 2
    error = capsys.readouterr().err
    assert "--output s3://bucket/runs: must be a folder, or file:///folder" in error
    assert "checkpoint.storage" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s3:").exists()


def test_budget_that_ends_before_any_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it does where the trials of a population train side by side."""
    monkeypatch.setattr(sweep_run, "connected", lambda *args, **options: nullcontext())
    monkeypatch.setattr(sweep_run, "_run_all", lambda *args: None)
    file = tmp_path / "space.yaml"
    file.write_text("study: mine\nspace: {method.alpha: {uniform: [0.1, 0.5]}}\nnum_samples: 2")
    assert main(["sweep", str(file), "--output", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "2 trials are left to the same command" in output
    assert f"no trial ended within the budget; the same command goes on in {tmp_path / 'mine'}" in output


def test_output_as_a_uri_of_a_folder() -> None:
    assert output_folder("file:///tmp/my%20runs") == Path("/tmp/my runs")
    assert output_folder("runs") == Path("runs")
    for text in ("file://elsewhere/runs", "gs://bucket/runs"):
        with pytest.raises(ValueError, match=f"--output {text}: must be a folder"):
            output_folder(text)


def test_model_beside_the_working_directory(tmp_path: Path) -> None:
    """package.module:function is looked for where the user stands, not where the program is; a plain log."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "start.py"  # as the console script: its own folder comes first
    program.write_text("import sys\nfrom distsparse.cli.main import main\nsys.exit(main())\n")
    (tmp_path / "mine.py").write_text("from parts import watched as network\n")
    result = subprocess.run(
        [sys.executable, str(program), "train", settings(tmp_path, model="mine:network")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "\r" not in result.stdout
    trial = pd.read_parquet(tmp_path / "runs" / "default" / "trials").iloc[0]
    assert trial["model.name"] == "mine:network"


def test_interrupted_run_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from distsparse.train import LocalReporter

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalReporter, "report", interrupt)
    assert main(["train", settings(tmp_path), "--output", str(tmp_path)]) == 130
    assert "`train` with --resume" in capsys.readouterr().err
    assert not (tmp_path / "default" / "trials").exists()
