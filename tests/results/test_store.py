from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distsparse.results import TABLES, config_columns, load, read_trial, replacing, studies, write

A, B, C = "aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"
CONFIG = {"method.name": pa.string(), "method.delta_T": pa.int64(), "method.zeta": pa.float64()}


def trial(root, key, *, study="s", config_columns=CONFIG, **values):
    row = {"status": "completed", **values}
    return write(root, study=study, trial=key, table="trials", rows=[row], config_columns=config_columns)


def test_write_puts_a_file_per_trial_and_fills_in_the_key(tmp_path):
    rows = [{"step": 1, "train_loss": 2.5}, {"step": 2}]
    path = write(tmp_path / "deep", study="s-1.x", trial=A, table="steps", rows=rows)
    assert path == tmp_path / "deep" / "s-1.x" / "steps" / f"{A}.parquet"
    data = pq.ParquetFile(path).read()
    assert data.column_names == [column.name for column in TABLES["steps"]]
    assert data.select(["study", "trial", "step", "train_loss"]).to_pylist() == [
        {"study": "s-1.x", "trial": A, "step": 1, "train_loss": 2.5},
        {"study": "s-1.x", "trial": A, "step": 2, "train_loss": None},
    ]
    assert data.schema.metadata[b"distsparse_table"] == b"steps"


def test_writing_again_replaces(tmp_path):
    trial(tmp_path, A, accuracy=0.5)
    trial(tmp_path, A, accuracy=0.75)
    assert read_trial(tmp_path, study="s", trial=A)[0]["accuracy"] == 0.75
    assert len(load(tmp_path)) == 1


def test_read_trial_returns_what_was_written_or_none(tmp_path):
    assert read_trial(tmp_path, study="s", trial=A) is None
    moment = datetime(2024, 5, 1, 14, 30, tzinfo=timezone(timedelta(hours=2)))
    trial(tmp_path, A, seed=3, started_at=moment, **{"method.delta_T": 100})
    [row] = read_trial(tmp_path, study="s", trial=A)
    assert row["seed"] == 3
    assert row["method.delta_T"] == 100
    assert row["error"] is None
    assert row["started_at"] == datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
    assert read_trial(tmp_path, study="s", trial=B) is None
    assert read_trial(tmp_path, study="s", trial=A, table="steps") is None
    write(tmp_path, study="s", trial=A, table="steps", rows=[])
    assert read_trial(tmp_path, study="s", trial=A, table="steps") == []
    with pytest.raises(ValueError, match="unknown table 'step'"):
        read_trial(tmp_path, study="s", trial=A, table="step")


def test_rows_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(AssertionError, match="acuracy"):
        trial(tmp_path, A, acuracy=0.5)
    with pytest.raises(AssertionError, match="another trial"):
        trial(tmp_path, A, trial=B)
    with pytest.raises(AssertionError, match="12 hexadecimal"):
        trial(tmp_path, "../../escape")
    with pytest.raises(AssertionError, match="one row"):
        write(tmp_path, study="s", trial=A, table="trials", rows=[{}, {}])
    with pytest.raises(pa.ArrowException):
        trial(tmp_path, A, accuracy="high")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "_private", "a/b", "a b", "a\n", "ü", "trials"])
def test_study_names_are_plain_folder_names(tmp_path, name):
    with pytest.raises(ValueError, match="study = "):
        trial(tmp_path, A, study=name)
    with pytest.raises(ValueError, match="study = "):
        read_trial(tmp_path, study=name, trial=A)


def fail_halfway(data, file, **options):
    file.write(b"PAR1 and then the disk is full")
    raise OSError("no space left on device")


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("module", "name", "failure", "error"),
    [
        (pq, "write_table", fail_halfway, OSError),
        (pq, "write_table", interrupted, KeyboardInterrupt),
        (os, "replace", interrupted, KeyboardInterrupt),
    ],
)
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, module, name, failure, error):
    trial(tmp_path, A, accuracy=0.5)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(module, name, failure)
    for key in (A, B):
        with pytest.raises(error):
            trial(tmp_path, key, accuracy=0.9)
    monkeypatch.undo()
    assert sorted(tmp_path.rglob("*")) == before
    assert load(tmp_path)["accuracy"].tolist() == [0.5]


def test_data_is_on_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def record(*arguments, name=name, original=original):
            order.append(name)
            if name == "replace":
                assert Path(arguments[0]).parent == Path(arguments[1]).parent
                assert Path(arguments[0]).name.startswith(".")
            return original(*arguments)

        monkeypatch.setattr(os, name, record)
    trial(tmp_path, A)
    assert order == ["fsync", "replace", "fsync"]


def test_a_process_killed_while_writing_leaves_a_readable_study(tmp_path):
    trial(tmp_path, A, accuracy=0.5)
    script = f"""
import os, signal
import pyarrow.parquet as pq
from distsparse.results import write
def die(data, file, **options):
    file.write(b"PAR1 partial"); file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
pq.write_table = die
write({str(tmp_path)!r}, study="s", trial={B!r}, table="trials", rows=[{{"status": "completed"}}])
"""
    repository = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", script], cwd=repository, capture_output=True, check=False)
    assert result.returncode == -9, result.stderr.decode()
    left = sorted(path.name for path in (tmp_path / "s" / "trials").iterdir())
    assert len(left) == 2
    assert left[0].startswith(".")
    assert load(tmp_path)["trial"].tolist() == [A]
    assert pd.read_parquet(tmp_path / "s" / "trials")["trial"].tolist() == [A]
    assert read_trial(tmp_path, study="s", trial=B) is None


@pytest.mark.parametrize("keys", [(A, B, C), (C, B, A)])
def test_pandas_alone_reads_every_registered_column_whatever_the_order(tmp_path, keys):
    failed, rigl, set_ = keys
    trial(tmp_path, failed, status="failed", error="ValueError: no")  # all configuration columns null
    trial(tmp_path, rigl, accuracy=0.9, **{"method.name": "rigl", "method.delta_T": 100})
    trial(tmp_path, set_, accuracy=0.8, **{"method.name": "set", "method.zeta": 0.3})
    frame = pd.read_parquet(tmp_path / "s" / "trials").set_index("trial")
    assert {column.name for column in TABLES["trials"]} - set(frame.reset_index().columns) == set()
    assert set(CONFIG) <= set(frame.columns)
    assert frame.loc[rigl, "method.delta_T"] == 100
    assert frame.loc[set_, "method.zeta"] == 0.3
    assert frame.loc[failed, "error"] == "ValueError: no"
    assert frame["accuracy"].isna().tolist() == [key == failed for key in sorted(keys)]


def test_load_sorts_and_joins_studies_with_different_columns(tmp_path):
    trial(tmp_path, B, study="two", config_columns={"method.alpha": pa.float64()}, **{"method.alpha": 0.5})
    trial(tmp_path, A, study="two", config_columns={"method.alpha": pa.int64()}, **{"method.alpha": 1})
    trial(tmp_path, C, study="one", **{"method.name": "set"})
    frame = load(tmp_path)
    assert frame[["study", "trial"]].to_numpy().tolist() == [["one", C], ["two", A], ["two", B]]
    assert frame["method.alpha"].tolist()[1:] == [1.0, 0.5]
    assert config_columns(frame) == ["method.name", "method.alpha"]  # delta_T and zeta: null in every row
    assert load(tmp_path / "two")["trial"].tolist() == [A, B]
    assert load(tmp_path / "two" / "trials")["trial"].tolist() == [A, B]
    assert studies(tmp_path) == ["one", "two"]
    assert studies(tmp_path / "two") == ["two"]


def test_load_sorts_rows_by_step_and_layer(tmp_path):
    rows = [{"step": s, "layer": layer} for s, layer in ((200, "b"), (100, "b"), (200, "a"), (100, "a"))]
    write(tmp_path, study="s", trial=B, table="rewires", rows=rows)
    write(tmp_path, study="s", trial=A, table="rewires", rows=rows[:1])
    frame = load(tmp_path, "rewires")
    assert list(zip(frame["trial"].str[0], frame["step"], frame["layer"], strict=True)) == [
        *[("a", 200, "b"), ("b", 100, "a"), ("b", 100, "b"), ("b", 200, "a"), ("b", 200, "b")]
    ]
    assert frame.index.tolist() == [0, 1, 2, 3, 4]
    assert load(tmp_path / "s" / "rewires").equals(frame)
    with pytest.raises(ValueError, match=r"table = 'steps', but .* is the folder of 'rewires'"):
        load(tmp_path / "s" / "rewires", "steps")


def test_integers_with_gaps_stay_integers(tmp_path):
    trial(tmp_path, A, seed=1, nnz=2**53 + 1)
    trial(tmp_path, B, seed=2)
    frame = load(tmp_path)
    assert frame["seed"].dtype == "int64"
    assert frame["nnz"].dtype == pd.Int64Dtype()
    assert frame["nnz"][0] == 2**53 + 1
    assert frame["nnz"][1] is pd.NA
    assert frame["accuracy"].dtype == "float64"


def test_json_values_without_a_column_get_one(tmp_path):
    mine = {"method": {"name": "mine:f", "temperature": 2, "layers": ["a", "b"], "nothing": None}, "seed": 9}
    other = {"method": {"name": "mine:g", "temperature": 0.5, "deep": {"er": True}, "key": "x"}}
    third = {"method": {"key": 3}}
    for key, config in ((A, mine), (B, other), (C, third)):
        trial(tmp_path, key, config=json.dumps(config), **{"method.name": config["method"].get("name")})
    frame = load(tmp_path)
    assert frame["method.name"].tolist()[:2] == ["mine:f", "mine:g"]
    assert frame["method.temperature"].tolist()[:2] == [2.0, 0.5]
    assert json.loads(frame["method.layers"][0]) == ["a", "b"]
    assert frame["method.deep.er"].dtype == pd.BooleanDtype()
    assert frame["method.deep.er"][1]
    assert frame["method.key"].tolist()[1:] == ["x", "3"]  # text and a number under one name: both text
    assert "method.nothing" not in frame
    assert frame["seed"].isna().all()  # the fixed column, not the configuration's
    names = list(frame.columns)
    assert names.index("seed") < names.index("method.temperature") < names.index("accuracy")


def test_json_fills_the_gaps_of_a_column_that_only_some_files_have(tmp_path):
    trial(tmp_path, A, config=json.dumps({"method": {"alpha": 1}}))
    alpha = {"method.alpha": pa.float64()}
    trial(tmp_path, B, config_columns=alpha, config='{"method": {"alpha": 0.3}}', **{"method.alpha": 0.3})
    assert load(tmp_path)["method.alpha"].tolist() == [1.0, 0.3]


def test_load_explains_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"no such results folder: .*absent"):
        load(tmp_path / "absent")
    with pytest.raises(ValueError, match="no such results folder"):
        studies(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"no results in .* yet: no trial has written to table 'trials'"):
        load(tmp_path)
    assert studies(tmp_path) == []
    trial(tmp_path, A)
    with pytest.raises(ValueError, match="unknown table 'curves'; allowed: trials, steps, rewires, layers"):
        load(tmp_path, "curves")
    with pytest.raises(ValueError, match="yet: no trial has written to table 'steps'"):
        load(tmp_path, "steps")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not parquet at all",
        lambda content: content[: len(content) // 2],
        lambda content: content[:40] + bytes(byte ^ 255 for byte in content[40:60]) + content[60:],
    ],
    ids=["empty", "text", "truncated", "flipped"],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    trial(tmp_path, A, accuracy=0.5)
    path = trial(tmp_path, B, accuracy=0.5)
    path.write_bytes(damage(path.read_bytes()))
    for read in (lambda: load(tmp_path), lambda: read_trial(tmp_path, study="s", trial=B)):
        with pytest.raises(ValueError, match=f"{B}.parquet cannot be read as Parquet"):
            read()
    assert read_trial(tmp_path, study="s", trial=A) is not None


def test_a_flipped_bit_in_a_value_does_not_pass_for_another_value(tmp_path):
    path = trial(tmp_path, A, accuracy=0.123456789)
    value = struct.pack("<d", 0.123456789)
    content = path.read_bytes()
    assert value in content
    path.write_bytes(content.replace(value, value[:-2] + bytes([value[-2] ^ 4]) + value[-1:], 1))
    with pytest.raises(ValueError, match=f"{A}.parquet cannot be read as Parquet"):
        load(tmp_path)


def test_a_file_of_a_newer_schema_or_of_another_program_is_named(tmp_path, monkeypatch):
    path = trial(tmp_path, A)
    data = pq.ParquetFile(path).read()
    pq.write_table(data.replace_schema_metadata({"distsparse_schema_version": "2"}), path)
    with pytest.raises(ValueError, match=f"{A}.parquet has schema version 2, newer than 1"):
        load(tmp_path)
    pq.write_table(data.replace_schema_metadata(None), path)
    with pytest.raises(ValueError, match=f"{A}.parquet was not written by distsparse"):
        load(tmp_path)


def test_columns_that_contradict_each_other_are_reported(tmp_path):
    trial(tmp_path, A, study="one", config_columns={"method.x": pa.int64()}, **{"method.x": 1})
    trial(tmp_path, B, study="two", config_columns={"method.x": pa.string()}, **{"method.x": "a"})
    with pytest.raises(ValueError, match=r"do not fit together.*method\.x"):
        load(tmp_path)
    assert load(tmp_path / "two")["method.x"].tolist() == ["a"]


def test_a_file_of_an_older_release_gets_the_columns_it_lacks(tmp_path):
    path = trial(tmp_path, A, accuracy=0.5)
    data = pq.ParquetFile(path).read()
    pq.write_table(data.drop_columns(["latency_ms", "nnz"]), path)
    frame = load(tmp_path)
    assert frame["latency_ms"].isna().tolist() == [True]
    assert list(frame.columns) == [column.name for column in TABLES["trials"]]


def test_folders_that_are_no_studies_are_passed_over(tmp_path):
    trial(tmp_path, A)
    (tmp_path / "logs").mkdir()
    (tmp_path / ".trash" / "trials").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("hello")
    assert studies(tmp_path) == ["s"]
    assert len(load(tmp_path)) == 1


def test_replacing_keeps_the_old_file_when_the_block_raises(tmp_path):
    path = tmp_path / "report.csv"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"ne", "w"])
    assert path.read_text() == "old"
    with replacing(path) as file:
        file.write(b"new")
    assert [child.name for child in tmp_path.iterdir()] == ["report.csv"]
    assert path.read_text() == "new"
