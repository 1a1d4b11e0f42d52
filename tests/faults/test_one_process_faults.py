"""Faults of a run without Ray: damaged checkpoints, a full disk, signals, gradients that are not finite."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import equal
from plants import outcome, planted, same

from distsparse import results
from distsparse.config import RunConfig
from distsparse.launch import run
from distsparse.launch.record import trial_folder
from distsparse.train import LocalReporter


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("undisturbed")
    config = planted("none", root)
    run(config, root)
    return outcome(root, config)


def command(config: RunConfig, root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `distsparse train` on a configuration, in a process of its own."""
    root.mkdir(exist_ok=True)
    (root / "run.yaml").write_text(json.dumps(config.to_dict()))
    return subprocess.run(
        [sys.executable, "-m", "distsparse", "train", "run.yaml", "--output", ".", *options],
        cwd=root,
        env=os.environ | {"FILLED": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def names(folder: Path) -> list[str]:
    return sorted(saved.name for saved in folder.iterdir())


class TestDamagedCheckpoint:
    """A run that was cut off at step 13, with checkpoints of the steps 5 and 10."""

    @pytest.fixture(scope="class")
    def killed(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
        root = tmp_path_factory.mktemp("killed")
        config = planted("forward", root / "marker", at=13)
        assert command(config, root).returncode == -9
        assert names(trial_folder(root, config)) == ["step-0000000005", "step-0000000010"]
        return config, root

    @pytest.fixture
    def cut_off(self, killed: tuple[RunConfig, Path], tmp_path: Path) -> tuple[RunConfig, Path]:
        config, root = killed
        return config, Path(shutil.copytree(trial_folder(root, config), trial_folder(tmp_path, config)))

    def damage(self, file: Path, how: str) -> None:
        if how == "absent":
            file.unlink()
        else:
            length = {"empty": 0, "half": file.stat().st_size // 2, "one byte": file.stat().st_size - 1}[how]
            os.truncate(file, length)

    @pytest.mark.parametrize("how", ["empty", "half", "one byte", "absent"])
    @pytest.mark.parametrize("file", ["network.safetensors", "state.safetensors", "state.json"])
    def test_one_before_is_used_and_a_line_says_so(
        self,
        cut_off: tuple[RunConfig, Path],
        file: str,
        how: str,
        undisturbed: dict[str, Any],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        config, folder = cut_off
        self.damage(folder / "step-0000000010" / file, how)
        run(config, tmp_path, resume=True, verbose=True)
        lines = capsys.readouterr().out.splitlines()
        (line,) = [line for line in lines if "cannot be read" in line]
        assert line.startswith(f"checkpoint {folder / 'step-0000000010' / file} cannot be read: ")
        assert line.endswith("; using the one before it")
        assert "resumed at step 5 of 24" in lines
        assert same(outcome(tmp_path, config), undisturbed)

    def test_none_is_readable(self, cut_off: tuple[RunConfig, Path], tmp_path: Path) -> None:
        config, folder = cut_off
        for saved in folder.iterdir():
            self.damage(saved / "state.json", "half")
        row = run(config, tmp_path, resume=True)
        assert row["status"] == "failed"
        assert row["error"].startswith(f"ValueError: checkpoint {folder / 'step-0000000010' / 'state.json'}")
        assert names(folder) == ["step-0000000005", "step-0000000010"]

    def test_unreadable_one_does_not_outlive_what_is_saved_after_it(
        self, cut_off: tuple[RunConfig, Path]
    ) -> None:
        _, folder = cut_off
        self.damage(folder / "step-0000000010" / "state.json", "half")

        def save(target: Path) -> None:
            (target / "state.json").write_text("{}")

        LocalReporter(folder, keep=1).report({}, step=7, save=save)
        assert names(folder) == ["step-0000000007"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a file system of its own needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_full_disk(small_disk: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    other = planted("none", tmp_path, hidden=8)
    assert command(other, small_disk).returncode == 0
    config = planted("full disk", tmp_path / "marker", at=13)
    failed = command(config, small_disk)
    assert (failed.returncode, failed.stderr) == (1, "")
    (line,) = [line for line in failed.stdout.splitlines() if "failed" in line]
    folder = trial_folder(small_disk, config)
    assert line.startswith(f"failed: OSError: checkpoint in {folder} cannot be written: ")
    assert "No space left on device" in line

    assert names(folder) == ["step-0000000005", "step-0000000010"]
    assert outcome(small_disk, other)
    assert set(results.load(small_disk)["status"]) == {"completed"}

    (small_disk / "filler").unlink()
    again = command(config, small_disk, "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumed at step 10 of 24" in again.stdout
    assert same(outcome(small_disk, config), undisturbed)
    assert sorted(results.load(small_disk)["status"]) == ["completed", "completed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")]
)
def test_signal_saves_the_running_step(
    fault: Any, code: int, word: str, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    config = planted(fault, tmp_path / "marker", at=8, **{"checkpoint.every_steps": 1000})
    stopped = command(config, tmp_path)
    assert stopped.returncode == code
    assert "stopped at step 8 of 24, and saved" in stopped.stdout
    (line,) = stopped.stderr.splitlines()
    assert line == f"distsparse: {word}; to go on: `train` with --resume, or the same `sweep` again"
    assert names(trial_folder(tmp_path, config)) == ["step-0000000008"]
    assert results.read_trial(tmp_path, study="default", trial=config.key) is None

    again = command(config, tmp_path, "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumed at step 8 of 24" in again.stdout
    assert same(outcome(tmp_path, config), undisturbed)


def test_nan_gradient_at_an_update_puts_it_off(tmp_path: Path) -> None:
    config = planted("nan gradient", tmp_path / "marker", at=10)  # the tenth step is that of number 9
    row = run(config, tmp_path)
    assert row["status"] == "completed", row["error"]
    rows = results.read_trial(tmp_path, study="default", trial=config.key, table="rewires") or []
    assert sorted({line["step"] for line in rows}) == [0, 3, 6, 10, 12, 15, 18]
    assert all(bool(weight.isfinite().all()) for weight in outcome(tmp_path, config)["weights"].values())


def test_nan_gradient_elsewhere_is_not_saved(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """The loss of the step is finite; its weights are not, and a checkpoint would be due."""
    config = planted("nan gradient", tmp_path / "marker", at=15, **{"train.log_every": 1000})
    row = run(config, tmp_path)
    assert row["status"] == "failed"
    assert row["error"] == "FloatingPointError: first.weight is not finite at step 15"
    assert names(trial_folder(tmp_path, config)) == ["step-0000000005", "step-0000000010"]
    run(config, tmp_path, resume=True)
    resumed = outcome(tmp_path, config)
    assert equal(resumed["weights"], undisturbed["weights"])
    assert equal(resumed["masks"], undisturbed["masks"])
