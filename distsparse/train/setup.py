"""From a configuration to the parts of a run: data, model, optimizer, sparsifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distsparse import data, optim
from distsparse.config import RunConfig, allowed_workers
from distsparse.core import Method, Sparsifier, find_weights, load_network
from distsparse.core.sharding import obstacle
from distsparse.data import Dataset
from distsparse.dist import Comm, GradientHook, LocalComm, current, layout, reduce_active
from distsparse.loggers import check_installed
from distsparse.train import checkpoint
from distsparse.train.build import build_method, build_model, starting_model
from distsparse.train.parallel import check_shardable, make_accelerator, placed_state, shard
from distsparse.train.rewind import Plan, Rewinder


def build_schedule(config: RunConfig, optimizer: Optimizer, plan: Plan) -> LRScheduler:
    """Return the configured learning-rate schedule of a round."""
    name, params = config.lr_schedule.name, config.lr_schedule.params
    return optim.build_schedule(
        name, optimizer, plan.steps_per_round, params, steps_per_epoch=plan.steps_per_epoch
    )


def make_plan(config: RunConfig, dataset: Dataset, method: Method) -> Plan:
    """Return the run's steps, epochs and rounds; an epoch's incomplete last batch is left out.

    Raises:
        ValueError: a batch is larger than the training data.
    """
    per_epoch = len(dataset.train.labels) // config.train.batch_size
    if per_epoch == 0:
        raise ValueError(
            f"train.batch_size = {config.train.batch_size}: "
            f"must be at most the {len(dataset.train.labels)} training samples"
        )
    return Plan.of(method, steps_per_epoch=per_epoch, epochs=config.train.epochs)


def load_data(config: RunConfig) -> Dataset:
    """Return the configured data set.

    Raises:
        ValueError: missing or unreadable data, or a custom factory that fails.
    """
    with _blaming("data", config.data.name):
        return data.build(config.data.name, config.data.params)


def check(config: RunConfig, dataset: Dataset | None = None) -> Dataset:
    """Load the data and rehearse a run's first step on two samples, before the run starts.

    ``dataset`` is the configured one, where it was loaded before.

    Raises:
        ValueError: missing or unreadable data, a batch larger than the data, a custom factory that fails, a
            model that the data does not fit, nothing to sparsify, a sparsified weight that the forward pass
            does not use, T_end past the run, an allocation that cannot hold, a learning rate that cannot fall
            to min_lr, a schedule that monitors a validation split which the data does not have, an experiment
            tracker that is not installed.
    """
    check_installed(config.loggers)
    if dataset is None:
        dataset = load_data(config)
    with _naming("method."):
        method = build_method(config)
    plan = make_plan(config, dataset, method)
    total_steps = plan.total_steps
    with _naming("method."):
        method.check(total_steps)
    with _blaming("model", config.model.name):
        model = starting_model(config, dataset, method)
        sample = data.batch(dataset.train, torch.arange(2), dataset=dataset, key=None)
        loss = _loss(model, sample, label_smoothing=0.0)
        if config.launch.shard:
            with _naming("launch.shard = True: "):
                _check_shard(config, method, model, sample)
    with _blaming("optimizer", config.optimizer.name):
        optimizer = optim.build_optimizer(
            config.optimizer.name, list(model.parameters()), config.optimizer.params
        )
    with _blaming("lr_schedule", config.lr_schedule.name):
        schedule = build_schedule(config, optimizer, plan)
        if isinstance(schedule, optim.FineTuningLR):
            optim.monitored(schedule.rules.monitor, has_validation=dataset.validation is not None)
    patterns = {"include": config.sparsify.include, "exclude": config.sparsify.exclude}
    with _naming("sparsify: "):
        weights = find_weights(model, **patterns)
    gradients = torch.autograd.grad(loss, [weight.parameter for weight in weights], allow_unused=True)
    for weight, gradient in zip(weights, gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"sparsify.exclude: the forward pass does not use the weight {weight.name!r}; exclude it"
            )
    sparsifier = Sparsifier.attach(
        method, model, optimizer, total_steps=total_steps, seed=0, comm=LocalComm(), **patterns
    )
    with _naming("method: "):
        sparsifier.initialize([sample], lambda net, batch: _loss(net, batch, label_smoothing=0.0))
    return dataset


def _check_shard(config: RunConfig, method: Method, model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    if problem := obstacle(method):
        raise ValueError(problem)
    forward = partial(_loss, model, sample, label_smoothing=0.0)
    check_shardable(model, forward, workers=allowed_workers(config))


@contextmanager
def _naming(section: str) -> Iterator[None]:
    """Put the section's name before a problem."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{section}{error}") from None


@contextmanager
def _blaming(section: str, name: str) -> Iterator[None]:
    """Turn whatever a factory or the model it made raises into one line that names it."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # custom factories are anybody's code
        reason = " ".join(str(error).split())
        raise ValueError(f"{section}.name = {name!r}: {type(error).__name__}: {reason}") from None


def _loss(model: nn.Module, sample: tuple[Tensor, Tensor], *, label_smoothing: float) -> Tensor:
    inputs, labels = sample
    dtype = next(model.parameters()).dtype
    return F.cross_entropy(model(inputs.to(dtype)), labels, label_smoothing=label_smoothing)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_samples: int) -> Tensor:
    return data.epoch_order(seed=seed, epoch=epoch, num_samples=num_samples)


@dataclass(frozen=True)
class Run:
    """The parts of one run on one process; the same on every rank but for ``comm.rank``."""

    config: RunConfig
    dataset: Dataset
    plan: Plan
    accelerator: Accelerator
    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    sparsifier: Sparsifier
    rewinder: Rewinder
    reduction: GradientHook | None
    comm: Comm

    @property
    def bare_model(self) -> nn.Module:
        """The model without DDP around it."""
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        return model

    def loss(self, model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean training loss of a micro-batch."""
        return _loss(model, sample, label_smoothing=self.config.train.label_smoothing)

    def micro_batches(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's share of a step's global batch, which is the same for any world size."""
        size = self.config.train.batch_size
        epoch, position = self.plan.epoch(step)
        order = _order(self.config.seed, epoch, len(self.dataset.train.labels))
        share = order[position * size : (position + 1) * size].chunk(self.comm.world_size)[self.comm.rank]
        augment = data.augmentation_key(seed=self.config.seed, epoch=epoch)
        for index in share.to(self.dataset.train.labels.device).chunk(self.config.train.accumulation):
            yield data.batch(self.dataset.train, index, dataset=self.dataset, key=augment)

    def _stateful(self) -> dict[str, Any]:
        parts = {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "sparsifier": self.sparsifier,
            "rewinder": self.rewinder,
        }
        maybe = {"scaler": self.accelerator.scaler, "reduction": self.reduction}
        return parts | {name: part for name, part in maybe.items() if part is not None}

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds a part of the weights only."""
        return layout.is_sharded(next(self.bare_model.parameters()))

    def saver(self, **state: Any) -> Callable[[Path], None]:
        """Return what writes a checkpoint of the run, with more state beside, into an existing folder.

        All ranks must call it, and rank 0 may then write: it has gathered there what is sharded.
        """
        if not self.is_sharded:
            return lambda folder: checkpoint.save(folder, **self._contents(state))
        whole = checkpoint.gathered(self._contents(state), keep=self.comm.rank == 0)
        return lambda folder: checkpoint.save(folder, **whole)

    def _contents(self, state: dict[str, Any]) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self._stateful().items()}
        return {
            "network": self.bare_model.state_dict(),
            "masks": parts["sparsifier"]["masks"],
            "state": {"config": self.config.to_dict(), **state} | parts,
        }

    def restore(self, folder: Path) -> dict[str, Any]:
        """Continue from a checkpoint; return the state beside.

        Optimizer settings that differ from those that it was saved under are this run's.

        Raises:
            ValueError: the checkpoint cannot be read, or is of another model.
        """
        options = optim.Options.of(self.optimizer, self.schedule)
        network, _ = load_network(folder)
        state = checkpoint.load_state(folder)
        model = self.bare_model
        try:
            model.load_state_dict(layout.placed(network, model.state_dict()))
        except RuntimeError as error:
            raise ValueError(f"checkpoint {folder} is of another model: {error}") from None
        state["optimizer"] = placed_state(state["optimizer"], self.optimizer)
        for name, part in self._stateful().items():
            if name in state:  # one worker counts no traffic, and another number of workers may resume it
                part.load_state_dict(state.pop(name))
        saved, own = state["config"]["optimizer"], self.config.to_dict()["optimizer"]
        changed = {name for name in own if own[name] != saved.get(name)}
        optim.change(self.optimizer, self.schedule, options, changed)
        return state


def _distributed(model: nn.Module, accelerator: Accelerator, *, sharded: bool) -> nn.Module:
    """Return a model for training on all processes, on this one's device."""
    prepared: nn.Module
    if not sharded:
        prepared = accelerator.prepare_model(model.to(accelerator.device))
        return prepared
    # In evaluation mode accelerate adds autocast and nothing else. The whole model is never on the device.
    prepared = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
    return shard(prepared, accelerator.device)


def prepare(config: RunConfig, dataset: Dataset, *, world_size: int) -> Run:
    """Return the parts of a run, on this process's device; the whole dataset moves there too."""
    accelerator = make_accelerator(config.train, config.launch, world_size=world_size)
    method = build_method(config)
    plan = make_plan(config, dataset, method)
    bare_model = starting_model(config, dataset, method)
    model = _distributed(bare_model, accelerator, sharded=config.launch.shard and world_size > 1)
    optimizer = optim.build_optimizer(
        config.optimizer.name, list(model.parameters()), config.optimizer.params
    )
    schedule = build_schedule(config, optimizer, plan)
    sparsifier = Sparsifier.attach(
        method,
        model,
        optimizer,
        total_steps=plan.total_steps,
        seed=config.seed,
        include=config.sparsify.include,
        exclude=config.sparsify.exclude,
    )

    reduction = None
    if isinstance(model, DistributedDataParallel):
        active = sparsifier if config.launch.all_reduce == "active" else None
        reduction = reduce_active(model, active, compression=config.launch.compression)

    def fresh() -> dict[str, Any]:
        return build_model(config, dataset, purpose="other weights").state_dict()

    return Run(
        config=config,
        dataset=dataset.to(accelerator.device),
        plan=plan,
        accelerator=accelerator,
        model=model,
        optimizer=accelerator.prepare_optimizer(optimizer),
        schedule=schedule,
        sparsifier=sparsifier,
        rewinder=Rewinder(sparsifier, bare_model, schedule, plan, fresh=fresh),
        reduction=reduction,
        comm=current(),
    )
