"""What is counted already holds for the masks that were counted, and for no others."""

from __future__ import annotations

from dataclasses import replace

import torch

from distsparse.core.topology import Topology

MASKS = {name: torch.arange(6).reshape(2, 3) < num for name, num in (("a", 2), ("b", 4))}


def test_a_count_is_of_its_mask_alone() -> None:
    topology = Topology({}, {"a": 2, "b": 4}).with_masks(MASKS, num_active={"a": 2})
    assert topology.num_active("a") == 2
    assert topology.num_active("b") is None
    assert topology.of("a").num_active("a") == 2
    others = {name: ~mask for name, mask in MASKS.items()}
    assert topology.with_masks(others).num_active("a") is None
    assert replace(topology, masks=others).num_active("a") is None
    assert replace(topology, targets={"a": 3, "b": 4}).num_active("a") == 2
