from __future__ import annotations

import pytest
from frames import trials

from distsparse.results import best_under


def study():
    return trials(
        {"accuracy": 0.9, "latency_ms": 2.0, "sparsity": 0.9},
        {"accuracy": 0.95, "latency_ms": 2.1, "sparsity": 0.9},
        {"accuracy": 0.8, "latency_ms": 0.5, "sparsity": 0.98},
        {"accuracy": 0.99, "latency_ms": None, "sparsity": 0.9},
        {"accuracy": 0.97, "latency_ms": 1.0, "sparsity": 0.9},
    ).assign(status=["completed"] * 4 + ["failed"])


def test_the_best_within_limits_comes_first():
    assert best_under(study(), {"latency_ms": 2}).index.tolist() == [0, 2]
    assert best_under(study(), {"latency_ms": 2.1}).index.tolist() == [1, 0, 2]
    assert best_under(study(), at_least={"sparsity": 0.95}).index.tolist() == [2]
    assert best_under(study(), {"latency_ms": 2}, at_least={"accuracy": 0.85}).index.tolist() == [0]
    assert best_under(study(), minimize="latency_ms").index.tolist() == [2, 0, 1]
    assert best_under(study()).index.tolist() == [3, 1, 0, 2]
    assert best_under(study(), {"latency_ms": 0.1}).empty


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="unknown column 'latency'; close: latency_ms"):
        best_under(study(), {"latency": 2})
    with pytest.raises(ValueError, match="name one of them"):
        best_under(study(), maximize="accuracy", minimize="latency_ms")
    with pytest.raises(ValueError, match="'status' is not numeric"):
        best_under(study(), maximize="status")
