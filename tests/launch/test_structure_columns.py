from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from parts import tiny

from distsparse import results
from distsparse.launch import run_local
from distsparse.launch.columns import config_columns
from distsparse.train import check


def test_a_group_is_a_name_or_a_number_and_a_tile_a_list_so_both_are_text() -> None:
    columns = config_columns()
    assert columns["method.group"] == columns["method.tile"] == pa.string()
    assert columns["method.sparsity"] == pa.float64()


@pytest.mark.parametrize(
    ("values", "group", "tile"),
    [
        ({"method.group": 4, "method.sparsity": 0.5, "method.allocation": "uniform"}, "4", "[1, 1]"),
        ({"method.group": "row"}, "row", "[1, 1]"),
        ({"method.tile": [2, 2]}, "layer", "[2, 2]"),
    ],
)
def test_structures_from_a_configuration_to_parquet(
    values: dict[str, Any], group: str, tile: str, tmp_path: Path
) -> None:
    run_local(tiny(values), tmp_path, verbose=False)
    (row,) = results.load(tmp_path).to_dict("records")
    assert row["status"] == "completed"
    assert (row["method.group"], row["method.tile"]) == (group, tile)
    if group == "4":
        assert row["sparsity"] == 0.5


def test_a_structure_that_contradicts_itself_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match=r"tile = \(2, 2\) with group = 'row': they exclude each other"):
        check(tiny({"method.group": "row", "method.tile": [2, 2]}))
