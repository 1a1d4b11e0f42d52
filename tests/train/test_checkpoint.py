from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distsparse.core import load_network
from distsparse.train import checkpoint


def same(first: Any, second: Any) -> bool:
    """Equal in value, type and dtype, all the way down; NaN equals itself."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second) or (first != first and second != second)


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "momentum": torch.randn(2, 3)}, 1: {}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1], "foreach": None}],
        },
        "half": torch.randn(3).to(torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": [{}, [], (), ""],
        "numbers": [1, 1.0, -0.5, float("inf"), float("nan"), 2**60, True, None],
        "transposed": torch.arange(6).reshape(2, 3).t(),
        "expanded": torch.ones(1).expand(4),
        "$tensor": {"$tuple": "a word of ours as a key"},
        "ΔT / α": "text",
    }
    checkpoint.save(tmp_path, network={}, masks={}, state=state)
    assert same(checkpoint.load_state(tmp_path), state)
    # Nothing that runs code when it is read.
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "network.safetensors",
        "state.json",
        "state.safetensors",
    ]
    json.loads((tmp_path / "state.json").read_text())


def test_plain_values_leave_tensors_out(tmp_path: Path) -> None:
    state = {"a": {"b": torch.ones(2)}, "rows": [{"step": 1}], "t": (torch.ones(1), 2)}
    checkpoint.save(tmp_path, network={}, masks={}, state=state)
    (tmp_path / "state.safetensors").unlink()
    assert checkpoint.plain_values(tmp_path) == {"a": {"b": None}, "rows": [{"step": 1}], "t": (None, 2)}


def test_network_with_tied_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    masks = {"0.weight": torch.rand(3, 3) > 0.5}
    checkpoint.save(tmp_path, network=model.state_dict(), masks=masks, state={})
    network, loaded = load_network(tmp_path)
    assert same(loaded, masks)
    assert same(dict(sorted(network.items())), dict(sorted(model.state_dict().items())))


def test_saved_tensors_are_copies(tmp_path: Path) -> None:
    """Views of one large tensor are written alone, not with all that they share memory with."""
    large = torch.randn(1000, 100)
    checkpoint.save(tmp_path, network={"a": large[:1], "b": large[1:2]}, masks={}, state={})
    assert (tmp_path / "network.safetensors").stat().st_size < 2000
    network, _ = load_network(tmp_path)
    assert torch.equal(network["b"], large[1:2])


DAMAGE = {
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "emptied": lambda file: file.write_bytes(b""),
    "overwritten": lambda file: file.write_bytes(b"\xff" * 100),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", ["network.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_named(name: str, damage: str, tmp_path: Path) -> None:
    state = {"weights": torch.randn(4), "step": 3}
    checkpoint.save(tmp_path, network={"w": torch.randn(4)}, masks={}, state=state)
    DAMAGE[damage](tmp_path / name)
    load = load_network if name.startswith("network") else checkpoint.load_state
    with pytest.raises(ValueError, match=f"checkpoint .*{name} cannot be read"):
        load(tmp_path)


def test_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deeper" / "step-1"
    with checkpoint.atomic_folder(target) as folder:
        (folder / "file").write_text("new")
        assert not target.exists()
        assert folder.parent == target.parent  # one file system: the rename is atomic
    assert (target / "file").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_folder_of_a_failed_block_vanishes(tmp_path: Path) -> None:
    def write() -> None:
        with checkpoint.atomic_folder(tmp_path / "step-1") as folder:
            (folder / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_replaced_or_kept(tmp_path: Path) -> None:
    target = tmp_path / "step-1"
    target.mkdir()
    (target / "old").write_text("old")

    def write(fail: bool) -> None:
        with checkpoint.atomic_folder(target) as folder:
            (folder / "new").write_text("new")
            if fail:
                raise OSError

    with pytest.raises(OSError):
        write(True)
    assert [file.name for file in target.iterdir()] == ["old"]
    write(False)
    assert [file.name for file in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
