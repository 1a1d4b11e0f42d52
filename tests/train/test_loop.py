from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import parts
import pytest
import torch
from parts import TINY, equal, tiny, trained, untimed
from torch import Tensor, nn
from torch.nn import functional as F

from distsparse import data, models
from distsparse.config import COMPONENTS, SECTIONS, RunConfig, Sparsify, Train
from distsparse.core import Sparsifier
from distsparse.methods import rigl
from distsparse.ops.counter_rng import key
from distsparse.train import History, LocalReporter, check, prepare, train
from distsparse.train.parallel import make_accelerator


def by_hand(config: RunConfig, *, sparse: bool, clip: float | None = None, smoothing: float = 0.0) -> Any:
    """The loop as anyone would write it: SGD with momentum, cosine learning rate, one process, fp64."""
    dataset = check(config)
    torch.manual_seed(key(config.seed, "weights"))
    params = config.model.params
    model = models.build(config.model.name, dataset.input_shape, dataset.num_classes, params).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    size, epochs = config.train.batch_size, config.train.epochs
    per_epoch = len(dataset.train) // size
    total = per_epoch * epochs
    sparsifier = None
    if sparse:
        method = rigl(sparsity=0.7, delta_T=3)
        sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=total, seed=config.seed)
        sparsifier.initialize()
    losses, norms = [], []
    for step in range(total):
        epoch, position = divmod(step, per_epoch)
        order = data.epoch_order(seed=config.seed, epoch=epoch, num_samples=len(dataset.train))
        index = order[position * size : (position + 1) * size]
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * step / total))
        logits = model(dataset.train.inputs[index].double())
        log_p = logits.log_softmax(1)
        target = F.one_hot(dataset.train.labels[index], logits.shape[1]).double()
        target = (1 - smoothing) * target + smoothing / logits.shape[1]
        loss = -(target * log_p).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        event = sparsifier.step() if sparsifier else None
        norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
        norms.append(float(norm))
        if clip is not None and norm > clip:
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad *= clip / (norm + 1e-6)
        if not (event and event.skip_optimizer_step):
            optimizer.step()
    return model, losses, norms


def close(network: Mapping[str, Tensor], model: nn.Module) -> bool:
    expected = model.state_dict()
    return network.keys() == expected.keys() and all(
        torch.allclose(network[name], expected[name], rtol=1e-9, atol=1e-12) for name in expected
    )


FP64 = {"train.precision": "fp64", "train.log_every": 1}


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "rigl"])
def test_equals_a_loop_written_by_hand(sparse: bool, tmp_path: Path) -> None:
    config = tiny({**FP64, **({} if sparse else {"method": "dense"})})
    network, _, history = trained(config, tmp_path)
    model, losses, _ = by_hand(config, sparse=sparse)
    assert close(network, model)
    assert [row["train_loss"] for row in history.steps] == pytest.approx(losses, rel=1e-9)


def test_clipping_equals_one_written_by_hand(tmp_path: Path) -> None:
    config = tiny({**FP64, "train.clip_norm": 0.5})
    network, _, history = trained(config, tmp_path)
    model, _, norms = by_hand(config, sparse=True, clip=0.5)
    assert max(norms) > 0.5 > min(norms)
    assert close(network, model)
    assert [row["grad_norm"] for row in history.steps] == pytest.approx(norms, rel=1e-5)


def test_label_smoothing_equals_one_written_by_hand(tmp_path: Path) -> None:
    config = tiny({**FP64, "train.label_smoothing": 0.3})
    network, _, history = trained(config, tmp_path)
    model, losses, _ = by_hand(config, sparse=True, smoothing=0.3)
    assert close(network, model)
    assert [row["train_loss"] for row in history.steps] == pytest.approx(losses, rel=1e-9)
    # Evaluation is of the task, not of the smoothed loss.
    dataset = check(config)
    logits = model(dataset.test.inputs.double())
    assert history.summary["loss"] == pytest.approx(
        float(F.cross_entropy(logits, dataset.test.labels)), rel=1e-9
    )


@pytest.mark.parametrize("clip", [None, 0.5])
def test_accumulation_equals_one_batch(clip: float | None, tmp_path: Path) -> None:
    """5 micro-batches of 2 are one batch of 10: the same updates, and one optimizer step."""
    values = {**FP64, "train.clip_norm": clip}
    network, masks, history = trained(tiny(values), tmp_path / "one")
    parts_network, parts_masks, parts_history = trained(tiny({**values, "train.accumulation": 5}), tmp_path)
    assert equal(masks, parts_masks)
    assert all(torch.allclose(network[name], parts_network[name], rtol=1e-9, atol=1e-12) for name in network)
    assert not equal(network, parts_network)  # or there were no micro-batches
    losses = [row["train_loss"] for row in history.steps]
    assert [row["train_loss"] for row in parts_history.steps] == pytest.approx(losses, rel=1e-9)
    assert parts_history.summary["steps"] == 24


def test_evaluation_is_a_mean_over_all_samples(tmp_path: Path) -> None:
    values = {"data.validation": 25, "train.evaluation_batch_size": 7}
    config = tiny(values)
    network, _, history = trained(config, tmp_path)
    dataset = check(config)
    model = models.build("mlp", dataset.input_shape, dataset.num_classes, config.model.params)
    model.load_state_dict(network)
    model.eval()
    assert dataset.validation is not None
    for split, name in ((dataset.test, ""), (dataset.validation, "validation_")):
        losses, correct = [], 0
        for inputs, label in zip(split.inputs, split.labels, strict=True):
            logits = model(inputs[None])
            losses.append(float(F.cross_entropy(logits, label[None]).detach()))
            correct += int(logits.argmax() == label)
        assert history.summary[f"{name}loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert history.summary[f"{name}accuracy"] == correct / len(split)
    assert len(dataset.test) == 33


def test_best_validation_accuracy_is_over_all_evaluations(tmp_path: Path) -> None:
    # A rate that only rises: later epochs are no better.
    values = {"data.validation": 25, "train.epochs": 6, "optimizer.lr": 1.0, "lr_schedule.name": "constant"}
    _, _, history = trained(tiny(values), tmp_path)
    accuracies = [row["validation_accuracy"] for row in history.steps if "validation_accuracy" in row]
    assert len(accuracies) == 6
    assert history.summary["best_validation_accuracy"] == max(accuracies)
    assert history.summary["validation_accuracy"] == accuracies[-1]


def test_dropout_is_off_in_evaluation(tmp_path: Path) -> None:
    config = tiny({"model": {"name": "parts:dropout_mlp", "dropout": 0.9}})
    network, _, history = trained(config, tmp_path)
    dataset = check(config)
    model = parts.dropout_mlp(dataset.input_shape, dataset.num_classes)
    model.load_state_dict(network)
    logits = model.eval()(dataset.test.inputs)
    expected = float(F.cross_entropy(logits, dataset.test.labels))
    assert history.summary["loss"] == pytest.approx(expected, rel=1e-5)


def test_rows_of_the_steps_table(tmp_path: Path) -> None:
    _, masks, history = trained(tiny({"train.log_every": 5}), tmp_path)
    assert [row["step"] for row in history.steps] == [5, 10, 12, 15, 20, 24]
    assert [row["epoch"] for row in history.steps] == [step / 12 for step in (5, 10, 12, 15, 20, 24)]
    evaluated = [row["step"] for row in history.steps if "test_accuracy" in row]
    assert evaluated == [12, 24]
    for row in history.steps:
        # The rate that the step was taken with, counted from 0.
        rate = 0.05 * (1 + math.cos(math.pi * (row["step"] - 1) / 24))
        assert row["learning_rate"] == pytest.approx(rate, rel=1e-6)
        assert row["grad_norm"] is None
        assert row["samples_per_s"] > 0
    elapsed = [row["elapsed_s"] for row in history.steps]
    assert elapsed == sorted(elapsed)
    inactive = sum(int((~mask).sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    assert history.steps[-1]["sparsity"] == pytest.approx(inactive / total)
    assert history.summary["epochs"] == 2


def test_train_loss_is_the_mean_since_the_row_before(tmp_path: Path) -> None:
    _, _, each = trained(tiny({"train.log_every": 1}), tmp_path / "each")
    _, _, some = trained(tiny({"train.log_every": 5}), tmp_path / "some")
    losses = [row["train_loss"] for row in each.steps]
    spans = [(0, 5), (5, 10), (10, 12), (12, 15), (15, 20), (20, 24)]
    means = [sum(losses[start:end]) / (end - start) for start, end in spans]
    assert [row["train_loss"] for row in some.steps] == pytest.approx(means, rel=1e-6)


def test_rows_of_the_rewires_table(tmp_path: Path) -> None:
    """24 steps, T_end 18, ΔT 3: updates at 3, 6, …, 18 (RigL, eq. for the update schedule)."""
    _, masks, history = trained(tiny(), tmp_path)
    steps = sorted({row["step"] for row in history.rewires})
    assert steps == [0, 3, 6, 9, 12, 15, 18]
    assert {row["layer"] for row in history.rewires} == set(masks)
    for row in history.rewires:
        if row["step"]:
            assert row["num_dropped"] == row["num_grown"]
            assert row["fraction"] == pytest.approx(row["num_dropped"] / row["nnz"])
        else:
            assert row["num_dropped"] == row["num_weights"] - row["nnz"]
            assert row["num_grown"] == 0
    for name, mask in masks.items():
        last = [row for row in history.rewires if row["layer"] == name][-1]
        assert (last["nnz"], last["num_weights"]) == (int(mask.sum()), mask.numel())
    assert history.summary["num_updates"] == 6
    updates = [row for row in history.rewires if row["step"]]
    assert history.summary["num_dropped"] == sum(row["num_dropped"] for row in updates) > 0
    assert history.summary["num_grown"] == sum(row["num_grown"] for row in updates)


def test_bf16_computes_in_bf16_and_stores_in_fp32(tmp_path: Path) -> None:
    network, masks, history = trained(tiny({"train.precision": "bf16"}), tmp_path / "bf16")
    assert all(tensor.dtype == torch.float32 for tensor in network.values())
    for name, mask in masks.items():
        assert torch.equal(network[name][~mask], torch.zeros(int((~mask).sum())))
    full, _, _ = trained(tiny(), tmp_path / "fp32")
    assert not equal(network, full)
    assert math.isfinite(history.summary["loss"])


def test_fp64_computes_in_fp64(tmp_path: Path) -> None:
    network, _, _ = trained(tiny({"train.precision": "fp64"}), tmp_path)
    assert all(tensor.dtype == torch.float64 for tensor in network.values())


def test_loss_scaling_meets_updates_and_clipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scaler unscales once per step, also where an update takes the step's place.

    fp16 scales on a GPU only; here the same scaler is put in by hand.
    """
    from distsparse.train import setup

    def scaled(*args: Any, **kwargs: Any) -> Any:
        accelerator = make_accelerator(*args, **kwargs)
        accelerator.native_amp = True
        accelerator.state._mixed_precision = "fp16"
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6)
        return accelerator

    values = {"train.clip_norm": 0.5, "train.log_every": 1}
    network, masks, history = trained(tiny(values), tmp_path / "plain")
    monkeypatch.setattr(setup, "make_accelerator", scaled)
    scaled_network, scaled_masks, scaled_history = trained(tiny(values), tmp_path / "fp16")
    assert equal(masks, scaled_masks)
    assert all(torch.allclose(network[name], scaled_network[name], atol=1e-3) for name in network)
    norms = [row["grad_norm"] for row in history.steps]
    assert [row["grad_norm"] for row in scaled_history.steps] == pytest.approx(norms, rel=1e-2)


def test_loss_that_is_not_finite_raises_and_keeps_the_rows(tmp_path: Path) -> None:
    config = tiny({"model": {"name": "parts:failing", "how": "nan", "at": 6}, "train.log_every": 2})
    history = History()
    with pytest.raises(FloatingPointError, match="the loss is nan at step 6"):
        train(config, check(config), LocalReporter(tmp_path, keep=1), history=history)
    assert [row["step"] for row in history.steps] == [2, 4]


def test_accelerate_must_see_the_workers() -> None:
    config = tiny()
    with pytest.raises(RuntimeError, match=r"1 process\(es\), but the run has 2 workers"):
        make_accelerator(config.train, config.launch, world_size=2)
    with pytest.raises(RuntimeError, match="2 workers"):
        prepare(config, check(config), world_size=2)


def test_threads_are_what_is_asked_for() -> None:
    config = tiny({"launch.num_threads": 3})
    make_accelerator(config.train, config.launch, world_size=1)
    assert torch.get_num_threads() == 3
    make_accelerator(config.train, tiny().launch, world_size=1)
    assert torch.get_num_threads() == 1


def outcome(config: RunConfig, folder: Path) -> tuple[Any, ...]:
    parts.EVALUATED.clear()
    network, masks, history = trained(config, folder)
    tensors = {name: tensor.tolist() for name, tensor in {**network, **masks}.items()}
    return tensors, untimed(history.steps), history.rewires, tuple(parts.EVALUATED)


SCHEDULES = {
    "constant": {"warmup_fraction": 0.5},
    "cosine": {"warmup_fraction": 0.5, "min_lr": 0.05},
    "exponential": {"warmup_fraction": 0.5, "min_lr": 0.05},
    "step": {"milestones": [0.25], "gamma": 0.5, "warmup_fraction": 0.5},
    "one-cycle": {"pct_start": 0.6, "div_factor": 5.0, "final_div_factor": 2.0},
    "fine_tuning": {
        "initial_lr": 0.3, "min_lr": 0.05, "decay": "exponential", "warmup_epochs": 1.0, "start": 0.5,
        "factor": 0.1, "patience": 2, "monitor": "validation_loss",
    },
}  # fmt: skip
# Where a schedule's keywords need more than the two epochs of a tiny run to show.
ROOM: dict[str, dict[str, Any]] = {
    "fine_tuning": {
        "train.epochs": 6,
        "method.T_end": 0.2,
        "data.validation": 20,
        "lr_schedule.patience": 1,
    },
}
CHANGES: dict[str, Any] = {
    "train.epochs": 3,
    "train.batch_size": 12,
    "train.accumulation": 2,
    "train.label_smoothing": 0.2,
    "train.clip_norm": 0.1,
    "train.precision": "bf16",
    "train.evaluate_every": 2,
    "train.log_every": 3,
    "train.evaluation_batch_size": 10,
    "sparsify.include": ["first.*"],
    "sparsify.exclude": ["first.*"],
    "optimizer.lr": 0.2,
    "optimizer.momentum": 0.5,
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 0.1,
}


def test_every_keyword_is_in_the_tables_above() -> None:
    sgd = COMPONENTS["optimizer"][0].get("sgd").schema.model_fields
    assert CHANGES.keys() == {
        *(f"train.{name}" for name in Train.model_fields),
        *(f"sparsify.{name}" for name in Sparsify.model_fields),
        *(f"optimizer.{name}" for name in sgd),
    }
    registry = COMPONENTS["lr_schedule"][0]
    assert {entry.name: set(entry.schema.model_fields) for entry in registry} == {
        name: set(values) for name, values in SCHEDULES.items()
    }
    others = {"checkpoint", "latency", "launch", "population", "loggers"}
    assert {"sparsify", "train"} | others == SECTIONS.keys()
    assert {field.name for field in fields(RunConfig)} >= SECTIONS.keys() | COMPONENTS.keys()


WATCHED = {**TINY, "model": "parts:watched"}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    return outcome(tiny({"model": "parts:watched"}), tmp_path_factory.mktemp("before"))


@pytest.mark.parametrize("path", CHANGES)
def test_every_keyword_changes_the_outcome(path: str, before: tuple[Any, ...], tmp_path: Path) -> None:
    assert outcome(tiny({"model": "parts:watched", path: CHANGES[path]}), tmp_path) != before


def test_the_same_run_is_the_same(before: tuple[Any, ...], tmp_path: Path) -> None:
    assert outcome(tiny({"model": "parts:watched"}), tmp_path) == before
    assert outcome(tiny({"model": "parts:watched", "seed": 1}), tmp_path) != before


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_keyword_changes_the_outcome(name: str, tmp_path: Path) -> None:
    values = {"model": "parts:watched", "lr_schedule.name": name, **ROOM.get(name, {})}
    plain = outcome(tiny(values), tmp_path)
    for keyword, value in SCHEDULES[name].items():
        assert outcome(tiny({**values, f"lr_schedule.{keyword}": value}), tmp_path) != plain, keyword


def test_checkpoint_keywords(tmp_path: Path) -> None:
    config = tiny({"checkpoint.every_steps": 7, "checkpoint.keep": 3})
    trained(config, tmp_path)
    saved = LocalReporter(tmp_path, keep=3).saved()
    assert [Path(folder).name for folder in saved] == [f"step-{step:010d}" for step in (14, 21, 24)]
    trained(tiny({"checkpoint.keep": 5}), tmp_path)
    saved = LocalReporter(tmp_path, keep=3).saved()
    assert [Path(folder).name for folder in saved] == [f"step-{step:010d}" for step in (12, 24)]
