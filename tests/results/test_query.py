from __future__ import annotations

import sys

import pyarrow as pa
import pytest

from distsparse.results import sql, write

KEYS = [letter * 12 for letter in "ab"]


@pytest.fixture
def root(tmp_path):
    for key, method, accuracy in zip(KEYS, ("rigl", "set"), (0.75, 0.5), strict=True):
        row = {"status": "completed", "accuracy": accuracy, "method.name": method}
        columns = {"method.name": pa.string()}
        write(tmp_path, study="s", trial=key, table="trials", rows=[row], config_columns=columns)
        steps = [{"step": step, "train_loss": 1 / step} for step in (1, 2)]
        write(tmp_path, study="s", trial=key, table="steps", rows=steps)
    return tmp_path


def test_a_query_joins_tables(root):
    pytest.importorskip("duckdb")
    frame = sql(
        'select "method.name" as method, accuracy, min(steps.train_loss) as loss from Trials '
        "join steps using (trial) group by all order by accuracy",
        root,
    )
    assert frame.to_dict("records") == [
        {"method": "set", "accuracy": 0.5, "loss": 0.5},
        {"method": "rigl", "accuracy": 0.75, "loss": 0.5},
    ]
    assert sql("select count(*) as n from trials", root / "s")["n"].tolist() == [2]


def test_mistaken_queries_are_explained(root):
    pytest.importorskip("duckdb")
    with pytest.raises(ValueError, match="the query names no table; there are trials, steps"):
        sql("select 1", root)
    with pytest.raises(ValueError, match=r"the query failed: .*acuracy"):
        sql("select acuracy from trials", root)
    with pytest.raises(ValueError, match=r"the query failed: .*disabled by configuration"):
        sql(f"select * from trials, '{root}/s/trials/{KEYS[0]}.parquet'", root)


def test_without_duckdb_the_error_says_what_to_install(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ValueError, match=r"pip install 'distsparse\[sql\]'"):
        sql("select * from trials", root)
