from __future__ import annotations

import numpy as np
import pandas as pd
from frames import trials

from distsparse.config import NOT_IDENTITY
from distsparse.results import settings
from distsparse.results.configurations import NOT_SETTINGS, grouped


def test_settings_are_what_differs_without_the_seed():
    frame = trials(
        {"seed": 0, "method.name": "set", "method.sparsity": 0.9, "model.name": "mlp", "accuracy": 0.5},
        {"seed": 1, "method.name": "rigl", "method.sparsity": 0.8, "model.name": "mlp", "accuracy": 0.6},
    )
    assert settings(frame) == ["method.name", "method.sparsity"]
    assert settings(frame.assign(study=["a", "b"])) == ["study", "method.name", "method.sparsity"]


def test_a_null_tells_apart_only_what_nothing_else_does():
    rows = [{"method.name": "dense"}, {"method.name": "set", "method.zeta": 0.3}]
    assert settings(trials(*rows)) == ["method.name"]
    rows = [{"method.name": "set"}, {"method.name": "set", "method.zeta": 0.3}, {"method.name": "dense"}]
    assert settings(trials(*rows)) == ["method.name", "method.zeta"]


def test_how_often_a_run_is_saved_is_no_setting():
    frame = trials({"checkpoint.keep": 1, "latency.measure": True}, {"checkpoint.keep": 2})
    assert settings(frame) == []
    for name in NOT_IDENTITY:
        if name != "study":
            assert f"{name}.".startswith(NOT_SETTINGS)


def test_groups_are_sorted_and_null_is_the_last():
    frame = pd.DataFrame({"a": ["y", None, "x", "y"], "b": [1.0, 1.0, np.nan, 1.0]}, index=[3, 3, 3, 3])
    table, number = grouped(frame, ["a", "b"])
    assert number.tolist() == [1, 2, 0, 1]
    assert table["a"].tolist()[:2] == ["x", "y"]
    table, number = grouped(frame, [])
    assert len(table) == 1
    assert number.tolist() == [0, 0, 0, 0]
    assert len(grouped(frame.iloc[:0], ["a"])[0]) == 0
