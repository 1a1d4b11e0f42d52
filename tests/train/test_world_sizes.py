"""One, two and four real processes: the same batches, the same masks, also where their number changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import equal, tiny
from ranks import run_ranks
from torch import distributed

from distsparse.config import RunConfig
from distsparse.core import load_network
from distsparse.train import History, LocalReporter, check, train
from distsparse.train.setup import prepare

VALUES: dict[str, Any] = {
    "train.batch_size": 24,
    "train.epochs": 4,
    "method.T_end": 1.0,
    "optimizer.momentum": 0.9,
    "checkpoint.every_steps": 5,
}
DOUBLE = tiny(VALUES | {"train.precision": "fp64"})
SINGLE = tiny(VALUES | {"model.hidden": [200, 100]})
STEPS = 20

pytestmark = pytest.mark.timeout(900)


class Ranks(LocalReporter):
    """Rank 0 saves; the loop is asked to stop after a step."""

    def __init__(self, directory: Path, *, rank: int, world_size: int, last: int | None) -> None:
        super().__init__(directory, keep=1)
        self.rank, self.world_size = rank, world_size
        self._last = last

    def stops_after(self, step: int) -> bool:
        return step == self._last

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        if self.rank == 0:
            super().report(metrics, step=step, save=save)
        distributed.barrier()


def train_jobs(rank: int, world_size: int, jobs: Sequence[tuple[str, Path, int | None]]) -> None:
    for name, folder, last in jobs:
        config = {"double": DOUBLE, "single": SINGLE}[name]
        history = History()
        reporter = Ranks(folder, rank=rank, world_size=world_size, last=last)
        try:
            train(config, check(config), reporter, history=history)
        except KeyboardInterrupt:
            assert last is not None
        (folder / f"rewires-{rank}.json").write_text(json.dumps(history.rewires))
        distributed.barrier()


def train_on(world_size: int, *jobs: tuple[str, Path, int | None]) -> None:
    """Run jobs on so many ranks: a configuration's name, a folder, the step to stop after."""
    run_ranks(train_jobs, world_size, world_size, jobs)


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: its mask updates by rank, its weights and masks."""

    rewires: list[list[dict[str, Any]]]
    weights: dict[str, torch.Tensor]
    masks: dict[str, torch.Tensor]


def outcome(folder: Path) -> Outcome:
    (saved,) = folder.glob("step-*")
    ranks = sorted(folder.glob("rewires-*.json"))
    return Outcome([json.loads(file.read_text()) for file in ranks], *load_network(saved))


def close(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], tolerance: float) -> bool:
    return all(torch.allclose(first[name], second[name], rtol=tolerance, atol=tolerance) for name in first)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Whole runs on 1, 2 and 4 ranks, and runs whose number of ranks changes at step 8."""
    root = tmp_path_factory.mktemp("runs")
    train_on(2, *((name, root / f"{name} 2 to {n}", 8) for name in ("double", "single") for n in (1, 2, 4)))
    for n in (1, 2, 4):
        train_on(
            n,
            *((name, root / f"{name} {n}", None) for name in ("double", "single")),
            *((name, root / f"{name} 2 to {n}", None) for name in ("double", "single")),
        )
    return {folder.name: outcome(folder) for folder in root.iterdir()}


def updates(result: Outcome) -> list[dict[str, Any]]:
    return result.rewires[0]


@pytest.mark.slow
@pytest.mark.parametrize("other", ["2", "4", "2 to 1", "2 to 4"])
def test_double_precision_chooses_exactly_the_same_masks(runs: dict[str, Outcome], other: str) -> None:
    alone, several = runs["double 1"], runs[f"double {other}"]
    assert len({row["step"] for row in updates(alone)}) == 7
    assert updates(several) == updates(alone)
    assert equal(several.masks, alone.masks)
    assert close(several.weights, alone.weights, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["2", "4", "2 to 1", "2 to 4"])
def test_single_precision_chooses_nearly_the_same(runs: dict[str, Outcome], other: str) -> None:
    alone, several = runs["single 1"], runs[f"single {other}"]
    same = sum(int((several.masks[name] == mask).sum()) for name, mask in alone.masks.items())
    assert same / sum(mask.numel() for mask in alone.masks.values()) >= 0.999
    assert [row["nnz"] for row in updates(several)] == [row["nnz"] for row in updates(alone)]
    assert close(several.weights, alone.weights, 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["double", "single"])
def test_stopped_run_goes_on_bit_for_bit(runs: dict[str, Outcome], name: str) -> None:
    whole, stopped = runs[f"{name} 2"], runs[f"{name} 2 to 2"]
    assert equal(stopped.weights, whole.weights)
    assert equal(stopped.masks, whole.masks)
    assert stopped.rewires == whole.rewires


@pytest.mark.slow
def test_all_ranks_record_the_same_updates(runs: dict[str, Outcome]) -> None:
    for name in ("double 2", "double 4", "single 2", "single 4"):
        first, *others = runs[name].rewires
        assert len(others) == int(name[-1]) - 1
        assert all(rows == first for rows in others)


@pytest.mark.slow
def test_masks_of_the_checkpoint_are_those_that_another_number_of_ranks_goes_on_with(
    runs: dict[str, Outcome],
) -> None:
    """Updates are at the steps 3, 6, 9, …: the one at 9 starts from what the two ranks left at 8."""
    for other in ("2 to 1", "2 to 4"):
        first = [row for row in updates(runs[f"single {other}"]) if row["step"] <= 6]
        assert first == [row for row in updates(runs["single 2"]) if row["step"] <= 6]


class _Place:
    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


@pytest.mark.parametrize("world_size", [2, 4])
def test_same_samples_for_any_number_of_ranks(world_size: int) -> None:
    config: RunConfig = tiny(VALUES | {"train.accumulation": 3})
    run = prepare(config, check(config), world_size=1)
    for step in (0, 7, STEPS - 1):
        whole = torch.cat([inputs for inputs, _ in run.micro_batches(step)])
        parts = []
        for rank in range(world_size):
            batches = list(replace(run, comm=_Place(rank, world_size)).micro_batches(step))  # type: ignore[arg-type]
            assert [len(labels) for _, labels in batches] == [24 // world_size // 3] * 3
            parts += [inputs for inputs, _ in batches]
        assert torch.equal(torch.cat(parts), whole)
