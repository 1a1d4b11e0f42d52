from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from distsparse.results import SCHEMA_VERSION, TABLES, schema


def test_config_columns_follow_the_identity_of_a_trial():
    fields = schema.schema("trials", {"method.delta_T": pa.int64(), "model.name": pa.string()})
    assert fields.names[:8] == [
        *("study", "trial", "status", "error", "seed"),
        *("method.delta_T", "model.name"),
        "accuracy",
    ]
    assert fields.field("method.delta_T").type == pa.int64()
    assert len(fields) == len(TABLES["trials"]) + 2


@pytest.mark.parametrize("table", list(TABLES))
def test_metadata_names_version_and_table_and_describes_columns(table):
    fields = schema.schema(table)
    assert fields.metadata == {
        b"distsparse_schema_version": str(SCHEMA_VERSION).encode(),
        b"distsparse_table": table.encode(),
    }
    assert all(field.metadata[b"description"] for field in fields)
    assert fields.names[:2] == ["study", "trial"]
    assert len(set(fields.names)) == len(fields.names)


def test_times_carry_a_time_zone():
    assert schema.schema("trials").field("started_at").type == pa.timestamp("us", tz="UTC")


def test_unknown_table_lists_what_is_allowed():
    with pytest.raises(ValueError, match="'curves'; allowed: trials, steps, rewires, layers"):
        schema.schema("curves")


def test_config_columns_cannot_shadow_or_leave_trials():
    with pytest.raises(AssertionError, match="accuracy"):
        schema.schema("trials", {"accuracy": pa.float64()})
    with pytest.raises(AssertionError, match="steps"):
        schema.schema("steps", {"method.name": pa.string()})


def test_documentation_is_generated_from_the_schema():
    page = Path(__file__).parents[2] / "docs" / "results.md"
    assert page.read_text() == schema.to_markdown(), (
        "stale: write distsparse.results.schema.to_markdown() to docs/results.md"
    )
    for columns in TABLES.values():
        assert all(f"| `{c.name}` | {c.type} | {c.description} |" in page.read_text() for c in columns)
