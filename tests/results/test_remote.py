from __future__ import annotations

import uuid

import pandas as pd
import pyarrow as pa
import pyarrow.fs
import pytest

from distsparse.cli.main import main
from distsparse.results import compact, load, pareto_front, read_trial, remove_trial, studies, write
from distsparse.results.remote import below, opened

KEYS = [letter * 12 for letter in "abc"]
CONFIG = {"method.name": pa.string()}


@pytest.fixture(scope="module")
def server():
    """An S3 server of our own on this machine."""
    moto = pytest.importorskip("moto.server")
    started = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    started.start()
    yield f"127.0.0.1:{started.get_host_and_port()[1]}"
    started.stop()


@pytest.fixture
def root(server, monkeypatch):
    for name, value in {
        "ACCESS_KEY_ID": "k",
        "SECRET_ACCESS_KEY": "s",
        "EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = f"b{uuid.uuid4().hex}"
    store = pa.fs.S3FileSystem(
        endpoint_override=server, scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    store.create_dir(bucket)
    return f"s3://{bucket}/results?endpoint_override={server}&scheme=http&region=us-east-1"


def add(root, key, accuracy, study="s"):
    row = {"status": "completed", "accuracy": accuracy, "method.name": "set", "seed": 0}
    return write(root, study=study, trial=key, table="trials", rows=[row], config_columns=CONFIG)


def test_tables_are_written_and_read_as_on_a_disk(root, tmp_path):
    for place in (root, tmp_path):
        for number, key in enumerate(KEYS):
            add(place, key, number / 4, study="one" if number else "two")
            write(place, study="one", trial=key, table="steps", rows=[{"step": 2}, {"step": 1}])
    for table in ("trials", "steps"):
        pd.testing.assert_frame_equal(load(root, table), load(tmp_path, table))
        pd.testing.assert_frame_equal(load(below(root, "one"), table), load(tmp_path / "one", table))
    assert studies(root) == ["one", "two"]
    assert load(below(below(root, "one"), "steps"))["step"].tolist() == [1, 2] * 3
    assert pareto_front(load(root), maximize=["accuracy"])["trial"].tolist() == [KEYS[2]]
    place = opened(root)
    plain = pd.read_parquet(f"{place.path}/one/trials", filesystem=place.filesystem)
    assert sorted(plain["trial"]) == KEYS[1:]


def test_a_trial_is_replaced_read_and_removed(root):
    assert read_trial(root, study="s", trial=KEYS[0]) is None
    assert add(root, KEYS[0], 0.25).endswith(f"results/s/trials/{KEYS[0]}.parquet")
    add(root, KEYS[0], 0.5)
    assert read_trial(root, study="s", trial=KEYS[0])[0]["accuracy"] == 0.5
    assert len(load(root)) == 1
    remove_trial(root, study="s", trial=KEYS[0])
    remove_trial(root, study="s", trial=KEYS[0])
    assert read_trial(root, study="s", trial=KEYS[0]) is None
    with pytest.raises(ValueError, match=r"no results in s3://.* yet"):
        load(root)


def test_merged_files_that_were_copied_there_are_read_and_not_written(root, tmp_path):
    for number, key in enumerate(KEYS):
        add(tmp_path, key, number / 4)
    compact(tmp_path)
    place = opened(root)
    merged = (tmp_path / "s" / "trials" / "merged.parquet").read_bytes()
    place.child("s").child("trials").put("merged.parquet", pa.py_buffer(merged))
    pd.testing.assert_frame_equal(load(root), load(tmp_path))
    assert read_trial(root, study="s", trial=KEYS[1])[0]["accuracy"] == 0.25
    with pytest.raises(
        ValueError, match=rf"trial {KEYS[1]} is in .*merged\.parquet, which cannot be rewritten"
    ):
        add(root, KEYS[1], 0.9)
    add(root, "d" * 12, 0.9)
    assert len(load(root)) == 4
    with pytest.raises(ValueError, match=r"merge a copy on a local disk"):
        compact(root)


def test_a_write_that_fails_leaves_nothing(root, monkeypatch):
    def broken(data, content, **options):
        content.write(b"PAR1 half a file")
        raise MemoryError

    monkeypatch.setattr("pyarrow.parquet.write_table", broken)
    with pytest.raises(MemoryError):
        add(root, KEYS[0], 0.5)
    assert opened(root).child("s").child("trials").names(folders=False) == []


def test_the_commands_take_a_uri(root, capsys):
    add(root, KEYS[0], 0.25)
    add(root, KEYS[1], 0.5, study="other")
    assert main(["results", root, "--study", "other"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 trials: 1 completed, 0 failed"
    assert main(["summary", root]) == 0
    assert "2 configurations of 2 completed trials" in capsys.readouterr().out
    assert main(["results", "nowhere://bucket/x"]) == 2
    assert "results folder nowhere://bucket/x: " in capsys.readouterr().err
