from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from distsparse.cli.main import main
from distsparse.results import compact, compaction, load, read_trial, remove_trial, write

CONFIG = {"method.name": pa.string()}


def keys(count):
    return [f"{number * 7919 % 4096:03x}{number:09x}" for number in range(count)]


def add(root, key, accuracy=0.5, study="s"):
    steps = [{"step": step, "train_loss": accuracy / step} for step in (2, 1)]
    write(root, study=study, trial=key, table="steps", rows=steps)
    row = {"status": "completed", "accuracy": accuracy, "method.name": "set"}
    write(root, study=study, trial=key, table="trials", rows=[row], config_columns=CONFIG)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".parquet")


@pytest.fixture
def root(tmp_path):
    for number, key in enumerate(keys(40)):
        add(tmp_path, key, accuracy=number / 40)
    return tmp_path


@pytest.mark.parametrize(("limit", "num_files"), [(40, 1), (39, 15), (1, 17)])
def test_merged_tables_read_as_before(root, limit, num_files, monkeypatch):
    monkeypatch.setattr(compaction, "MAX_TRIALS_PER_FILE", limit)
    before = {table: load(root, table) for table in ("trials", "steps")}
    done = compact(root)
    assert done["table"].tolist() == ["trials", "steps"]
    assert done["files_before"].tolist() == [40, 40]
    assert done["files_after"].tolist() == [num_files, num_files]
    for table, frame in before.items():
        assert names(root / "s" / table)[0].startswith("merged")
        pd.testing.assert_frame_equal(load(root, table), frame)
        plain = pd.read_parquet(root / "s" / table)
        assert sorted(plain["trial"]) == frame["trial"].tolist()
    assert not [path for path in (root / "s").iterdir() if "compacting" in path.name]
    again = compact(root)
    assert again["files_after"].tolist() == again["files_before"].tolist()


@pytest.mark.parametrize("limit", [1000, 3])
def test_merged_trials_can_be_read_written_and_removed(root, limit, monkeypatch):
    monkeypatch.setattr(compaction, "MAX_TRIALS_PER_FILE", limit)
    compact(root)
    first, second, *_ = keys(40)
    assert read_trial(root, study="s", trial=second)[0]["accuracy"] == 1 / 40
    assert [row["step"] for row in read_trial(root, study="s", trial=second, table="steps")] == [1, 2]
    assert read_trial(root, study="s", trial="f" * 12) is None
    add(root, first, accuracy=0.99)
    add(root, "f" * 12, accuracy=0.98)
    assert len(pd.read_parquet(root / "s" / "trials")) == 41
    assert read_trial(root, study="s", trial=first)[0]["accuracy"] == 0.99
    remove_trial(root, study="s", trial=second)
    assert read_trial(root, study="s", trial=second) is None
    assert read_trial(root, study="s", trial=second, table="steps") is None
    before = load(root)
    assert len(before) == 40
    compact(root, minimum=1)
    pd.testing.assert_frame_equal(load(root), before)
    assert "f" * 12 in set(pd.read_parquet(root / "s" / "trials")["trial"])


def test_few_files_are_left_as_they_are(root):
    assert compact(root, minimum=41)["files_after"].tolist() == [40, 40]
    assert compact(root / "s", minimum=40)["files_after"].tolist() == [1, 1]


def test_what_cannot_be_merged_is_named_and_left(root, monkeypatch):
    stranger = root / "s" / "trials" / "export.parquet"
    shutil.copy(next((root / "s" / "trials").glob("0*.parquet")), stranger)
    with pytest.raises(ValueError, match=r"export\.parquet is no trial's: move it away"):
        compact(root)
    stranger.write_bytes(b"no")
    with pytest.raises(ValueError, match="no trial's"):
        compact(root)
    stranger.unlink()
    monkeypatch.setattr(compaction, "RENAME_EXCHANGE", 1 << 20)
    with pytest.raises(ValueError, match=r"cannot exchange two folders in one step \(Invalid argument\)"):
        compact(root)
    assert len(names(root / "s" / "trials")) == 40
    assert not [path for path in (root / "s").iterdir() if "compacting" in path.name]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import pandas as pd
import pyarrow as pa
from distsparse.results import compact, load

root = Path(sys.argv[1])

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            pa.set_cpu_count(1)
            work()
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def killed_at(moment):
    left = [moment]
    def hook(event, arguments):
        if event == "ctypes.dlsym" or (event != "import" and any(str(root) in str(a) for a in arguments)):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    def work():
        sys.addaudithook(hook)
        compact(root / "now")
    return work

def complete():
    plain = lambda table: pd.read_parquet(root / "now/s" / table)
    for read in (lambda table: load(root / "now", table), plain):
        assert len(read("trials")) == read("trials")["trial"].nunique() == 3, "trials"
        assert len(read("steps")) == 6, "steps"

def mended():
    compact(root / "now")
    complete()
    assert {path.name for path in (root / "now/s/trials").iterdir()} == {"merged.parquet"}
    assert not list((root / "now/s").glob(".*compacting"))

moment = 0
while True:
    shutil.rmtree(root / "now", ignore_errors=True)
    shutil.copytree(root / "pristine", root / "now")
    status = child(killed_at(moment))
    assert status in (0, signal.SIGKILL), status
    assert child(complete) == 0, moment
    assert child(mended) == 0, moment
    if status == 0:
        break
    moment += 1
print(moment)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_no_row_and_doubles_none(tmp_path):
    for key in keys(3):
        add(tmp_path / "pristine", key)
    script = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(script, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


def test_writers_and_merging_do_not_harm_each_other(tmp_path):
    everything = keys(60)
    add(tmp_path, everything[0])
    errors = []

    def writer(part):
        try:
            for key in part:
                add(tmp_path, key)
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=writer, args=(everything[place::3],)) for place in range(3)]
    for thread in writers:
        thread.start()
    merges = 0
    while any(thread.is_alive() for thread in writers):
        compact(tmp_path, minimum=1)
        assert load(tmp_path)["trial"].is_unique
        merges += 1
    for thread in writers:
        thread.join()
    assert not errors
    assert merges > 1
    compact(tmp_path, minimum=1)
    assert load(tmp_path)["trial"].tolist() == sorted(everything)
    assert len(load(tmp_path, "steps")) == 120


def test_the_command_says_what_it_did(root, capsys):
    assert main(["compact", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["study", "table", "files_before", "files_after"],
        ["s", "trials", "40", "1"],
        ["s", "steps", "40", "1"],
    ]
    assert main(["compact", str(root / "absent")]) == 2
