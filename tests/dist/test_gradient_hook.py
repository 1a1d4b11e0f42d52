"""Real gloo processes: what travels between them, and that the weights are those of a plain all-reduce."""

from __future__ import annotations

import json
import gc
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import gloo_threads, run_ranks
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from distsparse.core import Method, Sparsifier
from distsparse.dist import Compression, leave, reduce_active
from distsparse.dist.comm import begin_sum
from distsparse.ops.keep import Keep
from distsparse.methods import dense, dsr, gmp, granet, mest, rigl, set_, snfs, snip, srigl, static

STEPS = 16
BATCH = 12

METHODS: dict[str, Callable[[], Method]] = {
    "dense": dense,
    "static": lambda: static(sparsity=0.8),
    "set": lambda: set_(sparsity=0.8, delta_T=3),
    "rigl": lambda: rigl(sparsity=0.8, delta_T=3),
    "rigl, window": lambda: rigl(sparsity=0.8, delta_T=5, grad_accumulation=2),
    "mest": lambda: mest(sparsity=0.8, delta_T=3),
    "snfs": lambda: snfs(sparsity=0.8, delta_T=3),
    "dsr": lambda: dsr(sparsity=0.8, delta_T=3),
    "gmp": lambda: gmp(sparsity=0.8, delta_T=3),
    "granet": lambda: granet(sparsity=0.8, delta_T=3),
    "srigl": lambda: srigl(sparsity=0.8, delta_T=3),
    "snip": lambda: snip(sparsity=0.8),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 5)
    )  # fmt: skip


def loss(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(sample[0]), sample[1])


def share(step: int, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs, labels = torch.randn(BATCH, 1, 6, 6, generator=generator), torch.randint(5, (BATCH,), generator=generator)
    return inputs[rank::world_size], labels[rank::world_size]


def trained(
    method: Method, rank: int, world_size: int, *, hook: bool, compression: Compression = "none", micro: int = 1
) -> dict[str, Any]:
    # Small buckets: several layers in some, one in others.
    model = DistributedDataParallel(network(), bucket_cap_mb=0.002)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=STEPS, seed=0)
    counter = reduce_active(model, sparsifier, compression=compression) if hook else None
    sparsifier.initialize([share(1000, rank, world_size)], loss)
    sent = []
    for step in range(STEPS):
        optimizer.zero_grad()
        inputs, labels = share(step, rank, world_size)
        for part in range(micro):
            sample = (inputs[part::micro], labels[part::micro])
            if part + 1 < micro:
                with model.no_sync():
                    (loss(model, sample) / micro).backward()
            else:
                (loss(model, sample) / micro).backward()
        event = sparsifier.step()
        if not (event and event.skip_optimizer_step):
            optimizer.step()
        sent.append(counter.sent_bytes if counter else 0)
    return {
        "weights": [value.detach().double().flatten().tolist() for value in model.parameters()],
        "masks": [mask.flatten().tolist() for mask in sparsifier.topology.masks.values()],
        "sent": sent,
        "dense": counter.dense_bytes if counter else 0,
        "nnz": [sparsifier.topology.nnz(name) for name in sparsifier.topology.masks],
    }


def zeroing(rank: int) -> dict[str, Any]:
    """What a step still zeroes where gradients are views of the buckets that the hook has zeroed."""
    model = DistributedDataParallel(network(), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier.attach(static(sparsity=0.8), model, optimizer, total_steps=STEPS, seed=0)
    reduce_active(model, sparsifier)
    sparsifier.initialize()
    inactive = {
        id(weight.parameter): ~sparsifier.topology.masks[name].reshape(weight.parameter.shape)
        for name, weight in sparsifier.weights.items()
    }
    found: dict[str, Any] = {"passes": [], "left": []}
    apply = Keep.apply
    for step in range(6):
        optimizer.zero_grad()
        loss(model, share(step, rank, 2)).backward()
        gradients = [(p.grad, inactive[id(p)]) for p in model.parameters() if id(p) in inactive]
        before = sum(int(gradient[flags].count_nonzero()) for gradient, flags in gradients)
        if step >= 3:  # as some do, between backward and step
            for gradient, _ in gradients[1:]:
                gradient.reshape(-1)[:].add_(1)
        passes = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Keep, "apply", lambda keep, *tensors, p=passes: (p.append(1), apply(keep, *tensors)))
            sparsifier.step()
        after = sum(int(gradient[flags].count_nonzero()) for gradient, flags in gradients)
        found["passes"].append(len(passes))
        found["left"].append((before, after))
        optimizer.step()
    return found


def of_two(rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, make in METHODS.items():
        results[name] = trained(make(), rank, 2, hook=True)
        results[f"{name}, plain"] = trained(make(), rank, 2, hook=False)
    results["micro"] = trained(METHODS["rigl"](), rank, 2, hook=True, micro=2)
    results["micro, plain"] = trained(METHODS["rigl"](), rank, 2, hook=False, micro=2)
    for compression in ("bf16", "fp16"):
        results[compression] = trained(METHODS["rigl"](), rank, 2, hook=True, compression=compression)
    results["zeroing"] = zeroing(rank)
    return results


def of_four(rank: int) -> dict[str, Any]:
    return {name: trained(METHODS[name](), rank, 4, hook=True) for name in ("rigl", "set")}


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run_ranks(of_two, 2)


@pytest.mark.parametrize("name", [*METHODS, "micro"])
def test_weights_and_masks_are_those_of_a_plain_all_reduce(name: str, two: list[dict[str, Any]]) -> None:
    for result in two:
        assert result[name]["masks"] == result[f"{name}, plain"]["masks"]
        assert result[name]["weights"] == result[f"{name}, plain"]["weights"]


def per_step(sent: list[float]) -> list[float]:
    return [after - before for before, after in zip([0.0, *sent], sent, strict=False)]


ALWAYS = 4 * (4 + 4 + 4 + 20 + 5)
"""bytes of biases and of the normalisation"""
WEIGHTS = 4 * (36 + 1280 + 100)


def test_bytes_by_hand(two: list[dict[str, Any]]) -> None:
    """Two ranks send each tensor once. RigL reads dense gradients at steps 3, 6, 9, 12, SET at none."""
    active = 4 * sum(two[0]["static"]["nnz"])
    assert active < 0.21 * WEIGHTS
    for name in ("rigl", "set", "static", "dense"):
        result = two[0][name]
        dense_steps = {"rigl": {3, 6, 9, 12}, "dense": set(range(STEPS))}.get(name, set())
        expected = [ALWAYS + (WEIGHTS if step in dense_steps else active) for step in range(STEPS)]
        assert per_step(result["sent"]) == expected
        assert result["dense"] == STEPS * (ALWAYS + WEIGHTS)
        assert result == two[1][name]


def test_dense_gradients_travel_only_where_a_method_reads_them(two: list[dict[str, Any]]) -> None:
    def dense_steps(name: str) -> list[int]:
        return [step for step, sent in enumerate(per_step(two[0][name]["sent"])) if sent == ALWAYS + WEIGHTS]

    assert dense_steps("rigl, window") == [4, 5, 9, 10]
    assert dense_steps("snfs") == list(range(13))  # its momentum needs every step up to T_end
    assert dense_steps("dsr") == dense_steps("snip") == []
    assert dense_steps("gmp") == [0, 1, 2, 3]  # all are active before the first prune


def test_compression_halves_the_bytes(two: list[dict[str, Any]]) -> None:
    for name in ("bf16", "fp16"):
        assert two[0][name]["sent"] == [sent / 2 for sent in two[0]["rigl"]["sent"]]
        assert two[0][name]["weights"] == two[1][name]["weights"]
        exact = torch.tensor(sum(two[0]["rigl"]["weights"], []))
        found = torch.tensor(sum(two[0][name]["weights"], []))
        assert not torch.equal(found, exact)


def test_what_the_hook_has_zeroed_is_zeroed_again_only_if_the_bucket_was_written_to(
    two: list[dict[str, Any]],
) -> None:
    for result in two:
        assert result["zeroing"]["left"] == [[0, 0]] * 6
        assert result["zeroing"]["passes"] == [0, 0, 0, 3, 3, 3]


def test_four_ranks_send_a_rings_share(two: list[dict[str, Any]]) -> None:
    ranks = run_ranks(of_four, 4)
    for name in ("rigl", "set"):
        assert all(result[name] == ranks[0][name] for result in ranks)
        assert ranks[0][name]["sent"] == [1.5 * sent for sent in two[0][name]["sent"]]


def _left_alone(rank: int, folder: Path) -> None:
    store = distributed.FileStore(str(folder / "init"), 2)
    limit = timedelta(seconds=60)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
    for num in (5, 1 << 17):  # by an exchange, and in rounds
        both = begin_sum(torch.full((num,), rank + 1.0), Tensor.neg).wait()
        assert both.tolist() == [-3.0] * num
    if rank == 0:
        with pytest.raises(RuntimeError):
            begin_sum(torch.ones(5), Tensor.neg).wait()
        (folder / "raised").touch()
    os._exit(0)  # gloo may abort a process that takes such a group apart


def test_a_sum_with_a_process_that_is_gone_raises(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_left_alone, (tmp_path,), nprocs=2)
    assert (tmp_path / "raised").exists()


def of_two_groups(rank: int) -> dict[str, Any]:
    """Four ranks, two trainings that know nothing of each other."""
    groups = [distributed.new_group([0, 1]), distributed.new_group([2, 3])]
    found = {}
    for hook in (True, False):
        model = DistributedDataParallel(network(), process_group=groups[rank // 2])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        method = rigl(sparsity=0.8, delta_T=3)
        sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=STEPS, seed=rank // 2)
        if hook:
            reduce_active(model, sparsifier)
        sparsifier.initialize()
        for step in range(STEPS):
            optimizer.zero_grad()
            loss(model, share(step, rank, 4)).backward()
            if not sparsifier.step():
                optimizer.step()
        found["hook" if hook else "plain"] = [p.detach().flatten().tolist() for p in model.parameters()]
    return found


def test_the_ranks_are_those_of_the_models_own_group() -> None:
    ranks = run_ranks(of_two_groups, 4)
    for result in ranks:
        assert result["hook"] == result["plain"]
    assert ranks[0] == ranks[1]
    assert ranks[2] == ranks[3] != ranks[0]


def trained_and_left(rank: int) -> dict[str, Any]:
    before = gloo_threads()
    trained(METHODS["rigl"](), rank, 2, hook=True)
    distributed.barrier()
    leave()
    return {"before": before, "after": gloo_threads(), "models": len(alive(DistributedDataParallel))}


def alive(kind: type) -> list[Any]:
    return [found for found in gc.get_objects() if isinstance(found, kind)]


@pytest.mark.skipif(sys.platform != "linux", reason="names of threads are read from /proc")
def test_of_a_group_that_was_left_nothing_stays() -> None:
    """Neither its threads, which may abort a process at its end, nor the model, of which a sweep has many."""
    for result in run_ranks(trained_and_left, 2):
        assert result["before"]
        assert result["after"] == []
        assert result["models"] == 0


def without_its_sparsifier(rank: int) -> str:
    model = DistributedDataParallel(network())
    reduce_active(model, Sparsifier.attach(static(), model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=1, seed=0))
    gc.collect()
    with pytest.raises(RuntimeError, match="sparsifier given to reduce_active is gone; keep it") as error:
        loss(model, share(0, rank, 2)).backward()
    return str(error.value)


def test_a_sparsifier_that_was_not_kept_is_named() -> None:
    first, second = run_ranks(without_its_sparsifier, 2)
    assert first == second


def test_a_bare_model_is_refused() -> None:
    model = nn.Linear(2, 2)
    sparsifier = Sparsifier.attach(
        static(), model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=1, seed=0
    )
    with pytest.raises(ValueError, match="model Linear: must be wrapped by DistributedDataParallel"):
        reduce_active(model, sparsifier)  # type: ignore[arg-type]
