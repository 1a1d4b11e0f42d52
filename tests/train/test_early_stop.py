"""A schedule that watches the run: what it sees, what it does, and a run that ends before its last epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import equal, tiny, trained, untimed
from ranks import run_ranks

from distsparse import results
from distsparse.config import RunConfig
from distsparse.core import load_network
from distsparse.launch import run
from distsparse.optim import FineTuningLR
from distsparse.train import History, LocalReporter, check, prepare, train
from distsparse.train.checkpoint import load_state
from distsparse.train.early_stop import goes_on, mean_train_loss
from distsparse.train.history import Row

# 12 steps an epoch; masks are updated in the first epoch only. A rate far too high improves nothing for long.
FINE_TUNING: dict[str, Any] = {
    "lr_schedule": {"name": "fine_tuning", "patience": 2, "factor": 0.1, "min_lr": 1e-4},
    "train.epochs": 30,
    "method.T_end": 9,
    "data.validation": 20,
    "optimizer.lr": 1.0,
}


def replayed(metrics: Sequence[float], *, patience: int, best: Any = max) -> tuple[int, int]:
    """Return (epoch of the stop, reductions) by the rule as one would say it."""
    reductions, since, reduced = 0, 0, False
    for i, metric in enumerate(metrics):
        if i == 0 or (metric != best(metrics[:i]) and metric == best(metrics[: i + 1])):
            since, reduced = i, False
        elif i - since == patience and not reduced:
            reductions, reduced = reductions + 1, True
        if i - since == 2 * patience:
            return i + 1, reductions
    return len(metrics), reductions


@pytest.mark.parametrize("monitor", ["auto", "validation_loss", "train_loss"])
def test_the_run_ends_where_its_own_metrics_say(monitor: str, tmp_path: Path) -> None:
    config = tiny({**FINE_TUNING, "lr_schedule.monitor": monitor, "train.log_every": 12})
    _, _, history = trained(config, tmp_path)
    column = "validation_accuracy" if monitor == "auto" else monitor
    metrics = [row[column] for row in history.steps]
    best = max if monitor == "auto" else min
    epoch, reductions = replayed(metrics, patience=2, best=best)
    assert len(metrics) == epoch < 30
    assert history.summary["stopped_early"] is True
    assert (history.summary["steps"], history.summary["epochs"]) == (12 * epoch, epoch)
    assert history.summary["num_lr_reductions"] == reductions > 0
    assert history.summary["best_monitored"] == best(metrics)


def test_the_checkpoint_and_the_tables_are_an_ends(tmp_path: Path) -> None:
    """The stop lies between two checkpoints that were due."""
    config = tiny({**FINE_TUNING, "checkpoint.every_steps": 101})
    row = run(config, tmp_path)
    assert (row["status"], row["stopped_early"]) == ("completed", True)
    assert row["steps"] % 101
    assert row["steps"] < 360
    assert Path(row["checkpoint"]).name == f"step-{row['steps']:010d}"
    network, _ = load_network(Path(row["checkpoint"]))
    last = results.load(tmp_path, table="steps").iloc[-1]
    assert (last["step"], last["test_accuracy"]) == (row["steps"], row["accuracy"])
    trials = results.load(tmp_path)
    assert trials["stopped_early"].dtype == bool
    assert trials["num_lr_reductions"].iloc[0] == row["num_lr_reductions"]
    assert 0 < row["training_flops"] < 1

    again = run(config, tmp_path, resume=True)
    assert again["finished_at"] == row["finished_at"]
    resumed = History()
    train(config, check(config), LocalReporter(Path(row["checkpoint"]).parent, keep=1), history=resumed)
    assert resumed.summary["steps"] == row["steps"]
    assert equal(network, load_network(Path(row["checkpoint"]))[0])


def test_a_run_to_its_end_did_not_stop_early(tmp_path: Path) -> None:
    config = tiny({**FINE_TUNING, "lr_schedule.patience": 2, "train.epochs": 30})
    _, _, history = trained(config, tmp_path / "early")
    epochs = history.summary["epochs"]
    _, _, plain = trained(tiny({**FINE_TUNING, "lr_schedule.patience": None}), tmp_path / "plain")
    assert (plain.summary["stopped_early"], plain.summary["epochs"]) == (False, 30)
    assert plain.summary["num_lr_reductions"] == 0
    _, _, cosine = trained(tiny(), tmp_path / "cosine")
    assert cosine.summary["stopped_early"] is False
    assert "num_lr_reductions" not in cosine.summary
    # Until the first reduction the two runs are one.
    assert untimed(plain.steps[:9]) == untimed(history.steps[:9])
    assert epochs < 30


def test_asked_to_stop_at_the_last_step_is_a_normal_end(tmp_path: Path) -> None:
    early = tiny({**FINE_TUNING, "lr_schedule": CONSTANT_METRIC})
    _, _, history = trained(early, tmp_path / "early")
    assert history.summary["epochs"] == 5
    exact = tiny({**FINE_TUNING, "lr_schedule": CONSTANT_METRIC, "train.epochs": 5})
    _, _, history = trained(exact, tmp_path / "exact")
    assert (history.summary["epochs"], history.summary["stopped_early"]) == (5, False)


# So small a rate that nothing changes a prediction: the first epoch is the best.
CONSTANT_METRIC = {"name": "fine_tuning", "initial_lr": 1e-9, "min_lr": 0.0, "patience": 2}


def test_a_run_never_ends_before_its_masks_are_final(tmp_path: Path) -> None:
    """Updates up to step 99 of 240: epochs 1 to 8 do not count, epoch 9 is the best, and 13 the end."""
    config = tiny(
        {**FINE_TUNING, "lr_schedule": CONSTANT_METRIC, "method.name": "gmp", "method.T_end": 99}
        | {"train.epochs": 20}
    )
    _, masks, history = trained(config, tmp_path)
    assert history.summary["epochs"] == 13
    assert max(row["step"] for row in history.rewires) == 99
    inactive = sum(int((~mask).sum()) for mask in masks.values())
    assert inactive / sum(mask.numel() for mask in masks.values()) == pytest.approx(0.7, abs=0.01)
    # With T_end at the run's end, 144 steps, the last update is that of step 141: one evaluation counts.
    config = tiny({**FINE_TUNING, "lr_schedule": CONSTANT_METRIC, "method.T_end": 1.0, "train.epochs": 12})
    _, _, history = trained(config, tmp_path)
    assert history.summary["epochs"] == 12
    assert history.summary["num_updates"] == 47
    assert (history.summary["num_lr_reductions"], history.summary["stopped_early"]) == (0, False)


def test_start_after_pruning(tmp_path: Path) -> None:
    """The base rate up to T_end, then warm-up of one epoch, and a decay over the rest."""
    config = tiny(
        {"lr_schedule": {"name": "fine_tuning", "start": 0.5, "warmup_epochs": 1, "initial_lr": 0.04}}
        | {"method": {"name": "gmp", "delta_T": 3, "T_end": 0.5}, "train.epochs": 4, "train.log_every": 1}
    )
    _, _, history = trained(config, tmp_path)
    rates = [row["learning_rate"] for row in history.steps]
    assert rates[:24] == [0.1] * 24
    assert rates[24:36] == pytest.approx([0.04 * (k + 1) / 13 for k in range(12)])
    assert rates[36] == 0.04
    assert rates[37:] == sorted(rates[37:], reverse=True)


class Interrupted(LocalReporter):
    """Fails right after one checkpoint."""

    after = 0

    def report(self, metrics: Any, *, step: int, save: Any = None) -> None:
        super().report(metrics, step=step, save=save)
        if step >= self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("monitor", "lr"), [("auto", 1.0), ("validation_loss", 4.0), ("train_loss", 1.0)])
def test_resumed_equals_uninterrupted_across_reductions(monitor: str, lr: float, tmp_path: Path) -> None:
    values = {"lr_schedule.monitor": monitor, "optimizer.lr": lr, "checkpoint.every_steps": 7}
    config = tiny({**FINE_TUNING, **values})
    network, masks, history = trained(config, tmp_path / "whole")
    assert history.summary["num_lr_reductions"] == (2 if lr == 4 else 1)
    assert history.summary["stopped_early"]
    dataset = check(config)
    folder = tmp_path / "parts"
    reductions = []
    for after in range(20, history.summary["steps"], 20):
        reporter = Interrupted(folder, keep=2)
        reporter.after = after
        with pytest.raises(KeyboardInterrupt):
            train(config, dataset, reporter, history=History())
        reductions.append(load_state(Path(reporter.saved()[-1]))["schedule"]["num_reductions"])
    assert reductions[0] == 0 < reductions[-1]
    resumed = History()
    reporter = LocalReporter(folder, keep=2)
    train(config, dataset, reporter, history=resumed)
    resumed_network, resumed_masks = load_network(Path(reporter.saved()[-1]))
    assert equal(network, resumed_network)
    assert equal(masks, resumed_masks)
    assert untimed(history.steps) == untimed(resumed.steps)
    assert untimed([history.summary]) == untimed([resumed.summary])


class OfTwo(LocalReporter):
    """A rank of two, without Ray; rank 0 saves."""

    world_size = 2

    def __init__(self, directory: Path, *, rank: int) -> None:
        super().__init__(directory, keep=1)
        self.rank = rank

    def report(self, metrics: Any, *, step: int, save: Any = None) -> None:
        super().report(metrics, step=step, save=None if self.rank else save)


def of_two(rank: int, folder: Path, values: dict[str, Any]) -> list[list[Row]]:
    config, history = tiny(values), History()
    train(config, check(config), OfTwo(folder, rank=rank), history=history)
    return [untimed(history.steps), untimed([history.summary])]


def test_two_ranks_stop_together(tmp_path: Path) -> None:
    values = {**FINE_TUNING, "lr_schedule.monitor": "train_loss"}
    first, second = run_ranks(of_two, 2, tmp_path / "checkpoints", values)
    assert first == second
    (summary,) = first[1]
    assert summary["stopped_early"]
    assert summary["num_lr_reductions"] == 1
    assert summary["world_size"] == 2
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert saved.name == f"step-{summary['steps']:010d}"


def test_the_training_loss_is_the_mean_since_the_evaluation_before() -> None:
    def row(step: int, loss: float, *, evaluated: bool = False) -> dict[str, Any]:
        return {"step": step, "train_loss": loss} | ({"test_loss": 0.0} if evaluated else {})

    first = [row(4, 3.0), row(8, 2.0), row(10, 1.0, evaluated=True)]
    assert mean_train_loss(first) == (4 * 3 + 4 * 2 + 2 * 1) / 10
    second = [*first, row(12, 8.0), row(20, 1.0, evaluated=True)]
    assert mean_train_loss(second) == (2 * 8 + 8 * 1) / 10
    assert mean_train_loss(first[-1:]) == 1.0


def test_what_is_logged_does_not_change_what_is_watched(tmp_path: Path) -> None:
    values = {**FINE_TUNING, "lr_schedule.monitor": "train_loss", "train.precision": "fp64"}
    _, _, often = trained(tiny({**values, "train.log_every": 1}), tmp_path / "often")
    _, _, seldom = trained(tiny({**values, "train.log_every": 12}), tmp_path / "seldom")
    assert often.summary["steps"] == seldom.summary["steps"] < 360
    assert often.summary["best_monitored"] == pytest.approx(seldom.summary["best_monitored"], rel=1e-12)


def test_the_test_split_is_never_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    observe = FineTuningLR.observe
    monkeypatch.setattr(
        FineTuningLR,
        "observe",
        lambda self, metric, **mode: seen.append(metric) or observe(self, metric, **mode),
    )
    _, _, history = trained(tiny({**FINE_TUNING, "data.validation": 0}), tmp_path)
    assert "validation_accuracy" not in history.steps[-1]
    assert len(seen) == history.summary["epochs"]
    starts = [0, *(i + 1 for i, row in enumerate(history.steps) if "test_loss" in row)]
    assert seen == [mean_train_loss(history.steps[:end]) for end in starts[1:]]


def test_other_schedules_watch_nothing() -> None:
    config: RunConfig = tiny()
    torch.manual_seed(0)
    assert goes_on(prepare(config, check(config), world_size=1), []) is True


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"lr_schedule.monitor": "validation_loss", "data.validation": 0},
            "lr_schedule.monitor = 'validation",
        ),
        (
            {"lr_schedule.warmup_epochs": 30},
            "lr_schedule.warmup_epochs = 30: must be less than the 30 epochs",
        ),
        ({"lr_schedule.min_lr": 2}, "lr_schedule.min_lr = 2.0: must be at most optimizer.lr = 1.0"),
    ],
)
def test_bad_values_are_found_before_the_run(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(tiny({**FINE_TUNING, **values}))
