"""Real processes: what ranks must agree on, and what happens when they do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Json, run_ranks
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from distsparse.core import AllocationName, Sparsifier
from distsparse.dist import ProcessGroupComm, TopologyMismatch, any_rank, current, reduce_active, verify
from distsparse.methods import rigl, set_, static
from distsparse.ops.digest import mask_digest

STEPS = 13
GLOBAL_BATCH = 12

def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5)).to(
        dtype
    )


def batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(GLOBAL_BATCH, 20, generator=generator).to(dtype)
    return inputs, torch.randint(5, (GLOBAL_BATCH,), generator=generator)


def loss(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(sample[0]), sample[1])


def masks_of(sparsifier: Sparsifier) -> dict[str, list[int]]:
    return {name: mask.flatten().int().tolist() for name, mask in sparsifier.topology.masks.items()}


def train_rigl(rank: int, num_ranks: int, dtype: torch.dtype, *, hook: bool = False) -> Json:
    """Train on this rank's share of each global batch; return masks after every update."""
    model: nn.Module = network(dtype)
    if num_ranks > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = rigl(sparsity=0.8, delta_T=3, T_end=1.0, alpha_schedule="constant", grad_accumulation=2)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=STEPS, seed=0)
    if hook:
        assert isinstance(model, DistributedDataParallel)
        reduce_active(model, sparsifier)
    sparsifier.initialize()
    history = [masks_of(sparsifier)]
    for step in range(STEPS):
        inputs, labels = (part[rank::num_ranks] for part in batch(step, dtype))
        optimizer.zero_grad()
        loss(model, (inputs, labels)).backward()
        if event := sparsifier.step():
            history.append(masks_of(sparsifier))
            assert event.num_grown > 0
        else:
            optimizer.step()
    return history


def initialize_by(allocation: AllocationName, batches: list[int]) -> Json:
    model = network(torch.float64)
    sparsifier = Sparsifier.attach(
        static(sparsity=0.7, allocation=allocation),
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        total_steps=10,
        seed=0,
    )
    sparsifier.initialize([batch(number, torch.float64) for number in batches], loss)
    return masks_of(sparsifier)


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except (TopologyMismatch, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def one_layer(method: Any, model: nn.Module, mask: Tensor, *, step: int) -> Sparsifier:
    """A sparsifier in the middle of a run, on a chosen mask."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=10, seed=0)
    state = sparsifier.state_dict()
    state.update(step=step, masks={"weight": mask}, targets={"weight": int(mask.sum())})
    sparsifier.load_state_dict(state)
    return sparsifier


def opposite_signs(rank: int) -> Json:
    """Inactive weight 2 has gradients +8 and -8 on the two ranks, weight 3 has 1 on both."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(4, 1, bias=False))
    mask = torch.tensor([[True, True, False, False]])
    sparsifier = one_layer(
        rigl(delta_T=1, alpha=0.5, alpha_schedule="constant", exclude_dropped=True), model, mask, step=1
    )
    model(torch.tensor([[0.0, 0.0, 8.0 * (-1) ** rank, 1.0]])).sum().backward()
    sparsifier.step()
    return masks_of(sparsifier)["weight"][2:]


def nan_on_one_rank(rank: int) -> Json:
    torch.manual_seed(0)
    layer = nn.Linear(8, 6, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    method = rigl(delta_T=2, sparsity=0.5, T_end=1.0)
    comm = ProcessGroupComm()
    sparsifier = Sparsifier.attach(method, layer, optimizer, total_steps=10, seed=0, comm=comm)
    sparsifier.initialize()
    updates = []
    for step in range(4):
        layer.weight.grad = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
        if rank == 1 and step == 2:
            layer.weight.grad[5, 7] = float("nan")
        if event := sparsifier.step():
            updates.append(event.step)
    return {
        "updates": updates,
        "deferred": sparsifier.statistics.num_deferred,
        "mask": masks_of(sparsifier)["weight"],
    }


def tampered(rank: int) -> str:
    """α so small that an update moves nothing: it must find what rank 1 changed behind its back."""
    torch.manual_seed(0)
    mask = torch.arange(20).reshape(4, 5) < 10
    if rank == 1:
        mask[0, 0], mask[3, 4] = False, True
    sparsifier = one_layer(set_(delta_T=1, alpha=0.01), nn.Linear(5, 4), mask, step=3)
    return error_of(sparsifier.step)


def different_seeds(rank: int) -> str:
    model = network(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier.attach(static(), model, optimizer, total_steps=10, seed=rank)
    return error_of(sparsifier.initialize)


def two_rank_scenarios(rank: int) -> Json:
    return {
        "float64": train_rigl(rank, 2, torch.float64),
        "float32": train_rigl(rank, 2, torch.float32),
        "opposite": opposite_signs(rank),
        "nan": nan_on_one_rank(rank),
        "tampered": tampered(rank),
        "different_seeds": different_seeds(rank),
        "sensitivity": initialize_by("sensitivity", [[0], [1]][rank]),
        "layer_scan": initialize_by("layer_scan", [[0], [1]][rank]),
        "sensitivity_uneven": initialize_by("sensitivity", [[0, 1], []][rank]),
        "layer_scan_uneven": initialize_by("layer_scan", [[0, 1], []][rank]),
        "sensitivity_none": error_of(lambda: initialize_by("sensitivity", [])),
        "layer_scan_none": error_of(lambda: initialize_by("layer_scan", [])),
    }


@pytest.fixture(scope="module")
def two_ranks() -> list[Json]:
    return run_ranks(two_rank_scenarios, 2)


def agreement(a: list[Json], b: list[Json]) -> float:
    """Smallest fraction of equal mask entries over layers and updates."""
    assert len(a) == len(b)
    fractions = []
    for masks_a, masks_b in zip(a, b, strict=True):
        for name in masks_a:
            pairs = list(zip(masks_a[name], masks_b[name], strict=True))
            fractions.append(sum(x == y for x, y in pairs) / len(pairs))
    return min(fractions)


def test_ranks_and_one_process_choose_the_same_topology(two_ranks: list[Json]) -> None:
    history = train_rigl(0, 1, torch.float64)
    assert len(history) == 1 + 4
    assert all(a != b for a, b in pairwise(history))
    assert two_ranks[0]["float64"] == two_ranks[1]["float64"] == history


def test_in_single_precision_ranks_agree_and_all_but_match_one_process(two_ranks: list[Json]) -> None:
    assert two_ranks[0]["float32"] == two_ranks[1]["float32"]
    assert agreement(two_ranks[0]["float32"], train_rigl(0, 1, torch.float32)) >= 0.999


def four_rank_scenarios(rank: int) -> Json:
    return {
        "float64": train_rigl(rank, 4, torch.float64),
        "active entries": train_rigl(rank, 4, torch.float64, hook=True),
        "float32": train_rigl(rank, 4, torch.float32, hook=True),
    }


def test_four_ranks_choose_it_as_well() -> None:
    results = run_ranks(four_rank_scenarios, 4)
    assert all(result == results[0] for result in results)
    assert results[0]["float64"] == results[0]["active entries"] == train_rigl(0, 1, torch.float64)
    assert agreement(results[0]["float32"], train_rigl(0, 1, torch.float32)) >= 0.999


def test_growth_is_by_the_magnitude_of_the_mean_gradient(two_ranks: list[Json]) -> None:
    # The mean of magnitudes would choose the first: 8 against 1.
    assert [result["opposite"] for result in two_ranks] == [[0, 1], [0, 1]]


def test_a_gradient_that_is_not_finite_on_one_rank_defers_the_update_on_all(two_ranks: list[Json]) -> None:
    for result in two_ranks:
        assert result["nan"]["updates"] == [3]
        assert result["nan"]["deferred"] == 1
    assert two_ranks[0]["nan"]["mask"] == two_ranks[1]["nan"]["mask"]


def test_a_tampered_mask_raises_on_all_ranks(two_ranks: list[Json]) -> None:
    for result in two_ranks:
        assert result["tampered"] == (
            "TopologyMismatch: topologies differ between ranks at step 3: "
            "layer 'weight': rank(s) [1] differ from the others"
        )


def test_different_seeds_raise_on_all_ranks_before_training(two_ranks: list[Json]) -> None:
    assert two_ranks[0]["different_seeds"] == two_ranks[1]["different_seeds"]
    for name in ("0.weight", "2.weight"):
        assert f"layer '{name}': rank(s) [1]" in two_ranks[0]["different_seeds"]
    assert "at step 0" in two_ranks[0]["different_seeds"]


@pytest.mark.parametrize("suffix", ["", "_uneven"])
@pytest.mark.parametrize("allocation", ["sensitivity", "layer_scan"])
def test_initial_signals_are_means_over_all_ranks_batches(
    two_ranks: list[Json], allocation: AllocationName, suffix: str
) -> None:
    expected = initialize_by(allocation, [0, 1])
    assert [result[allocation + suffix] for result in two_ranks] == [expected, expected]
    assert expected != initialize_by(allocation, [0])


def test_no_batches_on_any_rank_raise_on_all(two_ranks: list[Json]) -> None:
    for result in two_ranks:
        assert result["sensitivity_none"].endswith("batches is empty")
        assert result["layer_scan_none"].endswith("batches is empty")


def three_rank_scenarios(rank: int) -> Json:
    comm = current()
    mask = torch.arange(20) < 10
    other = mask.clone()
    other[0], other[19] = False, True
    changed = mask_digest(other)
    same = mask_digest(mask)
    digests = torch.stack([same, changed if rank == 1 else same, changed if rank != 0 else same])
    value = torch.tensor([rank, 10])
    return {
        "rank": [comm.rank, comm.world_size],
        "sum": comm.sum(value).tolist(),
        "argument": value.tolist(),
        "gather": [part.tolist() for part in comm.gather(value)],
        "any": [any_rank(comm, torch.tensor(rank == 2)), any_rank(comm, torch.tensor(False))],
        "error": error_of(lambda: verify(comm, ["a", "b", "c"], digests, step=700)),
        "fine": error_of(lambda: verify(comm, ["a"], digests[:1], step=700)),
    }


def test_three_ranks() -> None:
    for rank, result in enumerate(run_ranks(three_rank_scenarios, 3)):
        assert result["rank"] == [rank, 3]
        assert result["sum"] == [3, 30]
        assert result["argument"] == [rank, 10]
        assert result["gather"] == [[0, 10], [1, 10], [2, 10]]
        assert result["any"] == [True, False]
        # The majority is right: of layer c that is ranks 1 and 2.
        assert result["error"] == (
            "TopologyMismatch: topologies differ between ranks at step 700: "
            "layer 'b': rank(s) [1] differ from the others; layer 'c': rank(s) [0] differ from the others"
        )
        assert result["fine"] == ""


def test_one_process_is_its_own_group() -> None:
    comm = current()
    value = torch.tensor([1.5])
    assert (comm.rank, comm.world_size) == (0, 1)
    assert torch.equal(comm.sum(value), value)
    assert [part.tolist() for part in comm.gather(value)] == [[1.5]]
    assert any_rank(comm, torch.tensor(True))
    assert not any_rank(comm, torch.tensor(False))
    verify(comm, ["a"], torch.tensor([1]), step=0)
