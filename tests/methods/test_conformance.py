"""What every method in the registry must do; a new one is picked up by its name alone."""

from __future__ import annotations

import copy
import json
import typing
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, distributed, nn, optim
from torch.nn.parallel import DistributedDataParallel

from distsparse.core import Method, Rewired, Signals, Sparsifier
from distsparse.methods import methods, names
from distsparse.ops.allocation import num_active

STEPS = 14

# Small values for a small run; each is set where a method has such a keyword.
FAST = {"sparsity": 0.7, "delta_T": 3}

# A keyword that matters only under another one.
REQUIRES = {"sensitivity_norm": {"allocation": "sensitivity"}}

INPUT = (2, 6, 6)

NETWORKS = {
    "linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 4)
    ),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 12),
        nn.ReLU(),
        nn.Linear(12, 4),
    ),
}

OPTIMIZERS = {
    "sgd": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": partial(optim.AdamW, lr=0.01),
}


def fast_values(name: str) -> dict[str, Any]:
    return {key: value for key, value in FAST.items() if key in methods.get(name).schema.model_fields}


def configured(name: str, **changes: Any) -> Method:
    """The method with FAST's values, and others changed."""
    return methods.get(name).factory(**fast_values(name) | changes)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, *INPUT, generator=generator), torch.randint(4, (8,), generator=generator)


def loss(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(sample[0]), sample[1])


class Trainer:
    """A run of STEPS steps, from scratch or from another's state."""

    def __init__(
        self,
        method: Method,
        *,
        network: str = "conv",
        optimizer: str = "sgd",
        seed: int = 0,
        model_seed: int = 0,
    ) -> None:
        torch.manual_seed(model_seed)
        self.model: nn.Module = NETWORKS[network]()
        if distributed.is_initialized():
            self.model = DistributedDataParallel(self.model)
        self.optimizer: optim.Optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.sparsifier = Sparsifier.attach(method, self.model, self.optimizer, total_steps=STEPS, seed=seed)
        self.events: list[Rewired] = []

    def initialize(self) -> Trainer:
        self.events.append(self.sparsifier.initialize([batch(1000), batch(1001)], loss))
        return self

    def train(self, first: int = 0, last: int = STEPS, *, share: slice = slice(None)) -> Trainer:
        for step in range(first, last):
            self.optimizer.zero_grad()
            inputs, labels = batch(step)
            loss(self.model, (inputs[share], labels[share])).backward()
            event = self.sparsifier.step()
            self.check()
            if event:
                self.events.append(event)
            if not (event and event.skip_optimizer_step):
                self.optimizer.step()
            self.check()
        return self

    def check(self) -> None:
        """Counts are exact, and inactive weights, gradients and optimizer state are zero."""
        sparsifier = self.sparsifier
        for name, weight in sparsifier.weights.items():
            mask = sparsifier.topology.masks[name]
            assert int(mask.sum()) == sparsifier.topology.targets[name]
            state = self.optimizer.state[weight.parameter].values()
            tensors = [weight.parameter.detach(), weight.parameter.grad, *state]
            for tensor in tensors:
                if torch.is_tensor(tensor) and tensor.shape == weight.parameter.shape:
                    assert (weight.matrix(tensor)[~mask] == 0).all()

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "sparsifier": self.sparsifier.state_dict(),
            }
        )

    def restore(self, state: dict[str, Any]) -> Trainer:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sparsifier.load_state_dict(state["sparsifier"])
        return self

    def outcome(self) -> tuple[Any, ...]:
        """What a keyword may change: final masks, weights and optimizer state, and the updates."""
        return (
            [event.step for event in self.events],
            [layer.digest for event in self.events for layer in event.layers],
            [value.tolist() for value in self.model.state_dict().values()],
        )


def finished(method: Method, **keywords: Any) -> Trainer:
    return Trainer(method, **keywords).initialize().train()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", names())
class TestEveryMethod:
    def test_counts_are_exact_and_inactive_is_zero(self, name: str, network: str, optimizer: str) -> None:
        method = configured(name)
        trainer = finished(method, network=network, optimizer=optimizer)  # checks every step
        topology = trainer.sparsifier.topology
        progress = [method.progress(event.step, STEPS) for event in trainer.events]
        for event, at in zip(trainer.events, progress, strict=True):
            expected = num_active(topology.num_weights, method.sparsity(at))
            assert sum(layer.nnz for layer in event.layers) == expected
        updates = [event.step for event in trainer.events[1:]]
        assert updates == trainer.sparsifier.update_schedule()
        assert trainer.sparsifier.statistics.num_updates == len(updates)
        if "delta_T" in methods.get(name).schema.model_fields:
            assert len(updates) >= 2

    def test_deterministic(self, name: str, network: str, optimizer: str) -> None:
        first, second = (
            finished(configured(name), network=network, optimizer=optimizer).outcome() for _ in range(2)
        )
        assert first == second

    # 5 is between two updates, 6 just before one.
    @pytest.mark.parametrize("interrupted", [5, 6])
    def test_resumed_equals_uninterrupted(
        self, name: str, network: str, optimizer: str, interrupted: int
    ) -> None:
        kind = {"network": network, "optimizer": optimizer}
        whole = Trainer(configured(name), **kind).initialize().train(0, interrupted)
        state = whole.state()
        whole.train(interrupted)
        resumed = Trainer(configured(name), **kind, model_seed=1).restore(state).train(interrupted)
        assert resumed.events == whole.events[-len(resumed.events) :] or not resumed.events
        assert resumed.outcome()[2] == whole.outcome()[2]
        assert resumed.sparsifier.statistics == whole.sparsifier.statistics
        for mask, expected in zip(
            resumed.sparsifier.topology.masks.values(), whole.sparsifier.topology.masks.values(), strict=True
        ):
            assert torch.equal(mask, expected)


@pytest.mark.parametrize("name", names())
def test_the_seed_matters_where_a_method_is_random(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []
    random_bits = Signals.random_bits
    monkeypatch.setattr(Signals, "random_bits", lambda self: draws.append(1) or random_bits(self))
    outcomes = [finished(configured(name), seed=seed).outcome() for seed in (0, 1)]
    assert (outcomes[0] != outcomes[1]) == bool(draws)


def alternatives(name: str, field: str, value: Any) -> list[Any]:
    """Other values of a keyword, from its annotation; a number has one of the first two that are valid."""
    entry = methods.get(name)
    annotation = entry.schema.model_fields[field].annotation
    if typing.get_origin(annotation) is Literal:
        return [choice for choice in typing.get_args(annotation) if choice != value]
    if annotation is bool:
        return [not value]
    assert annotation in (int, float), f"teach this test other values of {field}: {annotation}"
    candidates = (value + 1, value - 1) if annotation is int else (value / 2, (value + 1) / 2)
    for candidate in candidates:
        try:
            entry.parse({field: candidate}, name)
        except ValueError:
            continue
        return [candidate]
    raise AssertionError(f"no other value of {name}.{field} found")


@cache
def outcome_of(name: str, changes: tuple[tuple[str, Any], ...]) -> tuple[Any, ...]:
    return finished(configured(name, **dict(changes))).outcome()


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name in names() for field in methods.get(name).schema.model_fields]
)
def test_every_keyword_changes_the_outcome(name: str, field: str) -> None:
    context = REQUIRES.get(field, {})
    defaults = methods.get(name).parse(fast_values(name), name)
    base = outcome_of(name, tuple(context.items()))
    for value in alternatives(name, field, defaults[field]):
        changed = outcome_of(name, (*context.items(), (field, value)))
        assert changed != base, f"{field} = {value!r} changes nothing against {defaults[field]!r}"


def _rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    results = {
        name: Trainer(configured(name)).initialize().train(share=slice(rank, None, 2)).outcome()
        for name in names()
    }
    (folder / f"{rank}.json").write_text(json.dumps(results))
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_ranks_agree(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank_main, (tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert list(first) == names()
    for name in names():
        assert first[name] == second[name], name
        # Each rank saw half of every batch, and yet the counts and updates are those of one process.
        assert first[name][0] == finished(configured(name)).outcome()[0], name
