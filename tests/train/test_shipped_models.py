"""Every shipped model trains, at every sparsity exactly as sparse as asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parts import tiny, trained

from distsparse.core import find_weights
from distsparse.models.registry import models
from distsparse.train import check
from distsparse.train.build import build_model

SIZES = {"mlp": 8, "lenet5": 28, "resnet20": 8, "resnet18": 8, "wrn-22-2": 8}
NARROW = {"mlp": {}, "lenet5": {}, "resnet20": {}, "resnet18": {"width": 0.25}, "wrn-22-2": {}}


def test_all_are_here() -> None:
    assert set(SIZES) == set(models.names())


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", SIZES)
def test_model_trains_exactly_sparse(name: str, sparsity: float, tmp_path: Path) -> None:
    channels = 3 if name in ("resnet20", "wrn-22-2") else 1
    config = tiny(
        {
            "model": {"name": name, **NARROW[name]},
            "data": {"name": "parts:pictures", "samples": 12, "size": SIZES[name], "channels": channels},
            "train": {"epochs": 2, "batch_size": 6, "evaluate_every": 2},
            "method": {"name": "rigl", "sparsity": sparsity, "delta_T": 1, "T_end": 1.0},
            "optimizer": {"name": "adamw", "lr": 0.001},
        }
    )
    network, masks, history = trained(config, tmp_path)
    weights = find_weights(build_model(config, check(config)))
    assert [weight.name for weight in weights] == list(masks) or set(masks) == {w.name for w in weights}
    total = sum(weight.parameter.numel() for weight in weights)
    assert history.summary["num_updates"] == 3
    assert history.summary["num_dropped"] == history.summary["num_grown"] > 0
    expected = total - int(sparsity * total + 0.5)
    for step in range(4):
        nnz = sum(row["nnz"] for row in history.rewires if row["step"] == step)
        assert abs(nnz - (1 - sparsity) * total) <= 0.5 + 1e-6, step
        assert abs(nnz - expected) <= 1
    for weight in weights:
        mask = masks[weight.name]
        value = weight.matrix(network[weight.name])
        assert torch.equal(value != 0, mask & (value != 0))
        assert bool((value[mask] != 0).any())
