"""`launch.shard`: from the configuration through training to a resume on another world size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import TINY, equal, tiny, trained, untimed
from ranks import Json, run_ranks
from torch import distributed

from distsparse.config import RunConfig, override
from distsparse.core import load_network
from distsparse.train import History, LocalReporter, check, checkpoint, train


class RanksReporter(LocalReporter):
    """A local reporter for the processes of a group: rank 0 writes, the others wait."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        super().__init__(directory, keep=keep)
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()

    def checkpoints(self) -> list[AbstractContextManager[Path]]:
        return list(super().checkpoints())

    def report(
        self, metrics: Mapping[str, Any], *, step: int, save: Callable[[Path], None] | None = None
    ) -> None:
        if self.rank == 0:
            super().report(metrics, step=step, save=save)
        distributed.barrier()


def config_of(values: Mapping[str, Any], *, workers: int = 2, shard: bool = True) -> RunConfig:
    launch = {"launch.workers": workers, "launch.shard": shard and workers > 0}
    return override(TINY, {"train.precision": "fp64", **launch, **values})


# A last batch that only one rank has, rows that two do not divide, biases and moments beside the weights.
BASE: dict[str, Any] = {"model.hidden": [15], "optimizer.name": "adamw", "train.evaluation_batch_size": 7}
RUNS: dict[str, dict[str, Any]] = {
    "rigl": BASE,
    "snfs": BASE | {"method.name": "snfs", "train.accumulation": 5},
    "srigl": BASE | {"method.name": "srigl", "method.gamma": 0.9, "train.clip_norm": 0.05},
    "imp": BASE | {"method": {"name": "imp", "sparsity": 0.6, "prune_fraction": 0.4, "rewind_to": 0.25}},
    "snip": BASE | {"method": {"name": "snip", "sparsity": 0.7}},
    "gradient sum": BASE | {"method.grad_accumulation": 2, "method.allocation": "sensitivity"},
    "channels": BASE | {"method": {"name": "rigl_structured", "delta_T": 3}},
}
CUT = 11
"""a step between two updates, at which a run is cut"""


def run(config: RunConfig, folder: Path, *, stop_at: int | None = None) -> Json:
    """Train on this process group; stop after a checkpoint at a step, as one does who is told to stop."""
    history = History()
    reporter = RanksReporter(folder, keep=9)
    original = reporter.report

    def report(metrics: Mapping[str, Any], *, step: int, save: Any = None) -> None:
        original(metrics, step=step, save=save)
        if save is not None and step == stop_at:
            raise KeyboardInterrupt

    reporter.report = report  # type: ignore[method-assign]
    try:
        train(config, check(config), reporter, history=history)
    except KeyboardInterrupt:
        assert stop_at is not None
    return {
        "steps": untimed(history.steps),
        "rewires": history.rewires,
        "summary": untimed([history.summary])[0] if history.summary else {},
    }


def scenarios(rank: int, folder: Path) -> Json:
    found = {}
    for name, values in RUNS.items():
        config = config_of({**values, "checkpoint.every_steps": CUT})
        found[name] = run(config, folder / name)
        run(config, folder / f"{name} cut", stop_at=CUT)
    # What one process began, two go on with.
    config = config_of({**RUNS["snfs"], "checkpoint.every_steps": CUT})
    found["1 to 2"] = run(config, folder / "1 to 2")
    found["bf16"] = run(config_of({**BASE, "train.precision": "bf16"}), folder / "bf16")["summary"]
    return found


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Json]]:
    folder = tmp_path_factory.mktemp("ranks")
    alone(folder / "1 to 2", RUNS["snfs"], stop_at=CUT)
    return folder, run_ranks(scenarios, 2, folder)


def alone(folder: Path, values: Mapping[str, Any], *, stop_at: int | None = None) -> History:
    """Train in this process; with ``stop_at`` keep the checkpoint of that step alone."""
    config = config_of({**values, "checkpoint.every_steps": CUT}, workers=0)
    history = History()
    reporter = LocalReporter(folder, keep=9)
    train(config, check(config), reporter, history=history)
    for saved in map(Path, reporter.saved()):
        if stop_at is not None and saved.name != f"step-{stop_at:010d}":
            checkpoint.shutil.rmtree(saved)
    return history


def last(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return load_network(sorted(folder.glob("step-*"))[-1])


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_what_one_does(
    two_ranks: tuple[Path, list[Json]], tmp_path: Path, name: str
) -> None:
    folder, results = two_ranks
    weights, masks, history = trained(config_of(RUNS[name], workers=0), tmp_path / "alone")
    found, found_masks = last(folder / name)
    assert equal(found_masks, masks)
    for key, value in weights.items():
        torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-9)
    for result in results:
        assert result[name]["rewires"] == history.rewires
        assert [row["sparsity"] for row in result[name]["steps"]] == [
            row["sparsity"] for row in history.steps
        ]
        summary = result[name]["summary"]
        assert summary["accuracy"] == history.summary["accuracy"]
        assert summary["loss"] == pytest.approx(history.summary["loss"])
        assert "gradient_bytes" not in summary


@pytest.mark.parametrize("name", RUNS)
def test_one_process_goes_on_where_two_were_cut(
    two_ranks: tuple[Path, list[Json]], tmp_path: Path, name: str
) -> None:
    folder, _ = two_ranks
    cut = folder / f"{name} cut"
    assert [saved.name for saved in sorted(cut.glob("step-*"))][-1] == f"step-{CUT:010d}"
    history = alone(cut, RUNS[name])
    assert history.rewires == alone(tmp_path, RUNS[name]).rewires
    (weights, masks), (expected, expected_masks) = last(cut), last(tmp_path)
    assert equal(masks, expected_masks)
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-7, atol=1e-9)


def test_two_processes_go_on_where_one_was_cut(
    two_ranks: tuple[Path, list[Json]],
) -> None:
    folder, results = two_ranks
    (weights, masks), (expected, expected_masks) = last(folder / "1 to 2"), last(folder / "snfs")
    assert equal(masks, expected_masks)
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-7, atol=1e-9)
    assert all(result["1 to 2"]["rewires"] == result["snfs"]["rewires"] for result in results)


def test_a_checkpoint_is_that_of_one_process(two_ranks: tuple[Path, list[Json]], tmp_path: Path) -> None:
    folder, _ = two_ranks
    alone(tmp_path, RUNS["snfs"])
    saved, expected = (
        checkpoint.load_state(sorted(at.glob("step-*"))[-1]) for at in (folder / "snfs", tmp_path)
    )
    assert saved.keys() == expected.keys()
    assert saved["sparsifier"].keys() == expected["sparsifier"].keys()
    for number, of in expected["optimizer"]["state"].items():
        for key, value in of.items():
            torch.testing.assert_close(saved["optimizer"]["state"][number][key], value, rtol=1e-7, atol=1e-9)


def test_in_bf16(two_ranks: tuple[Path, list[Json]]) -> None:
    assert two_ranks[1][0]["bf16"] == two_ranks[1][1]["bf16"]
    assert two_ranks[1][0]["bf16"]["accuracy"] > 0.4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"launch.workers": 0}, "launch.shard = True: needs workers to shard over"),
        ({"launch.compression": "bf16"}, "launch.compression = 'bf16': must be none with launch.shard"),
        ({"train.precision": "fp16"}, "train.precision = 'fp16': with launch.shard allowed are"),
        ({"optimizer": "rprop"}, "optimizer.name = 'rprop': does not run with launch.shard"),
        ({"method": {"name": "grasp"}}, "launch.shard = True: prune(gradient_flow, "),
        ({"method": {"name": "synflow"}}, "launch.shard = True: prune(synaptic_flow, "),
        ({"method": {"name": "gmp", "allocation": "lamp", "delta_T": 3}}, "launch.shard = True: prune(mag"),
        ({"method": {"name": "rigl", "tile": [2, 2], "delta_T": 3}}, "launch.shard = True: tile = (2, 2): "),
        (
            {"model": {"name": "parts:stored_in_out"}},
            "launch.shard = True: weight 'weight' has 3 outputs; as it",
        ),
        ({"model": {"name": "parts:by_hand"}}, "launch.shard = True: the forward pass does not call first"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_before_it_starts(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        check(tiny({"launch.workers": 2, "launch.shard": True, **values}))
    assert str(error.value).startswith(message)
