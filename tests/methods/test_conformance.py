"""What every method in the registry must do; a new one is picked up by its name alone."""

from __future__ import annotations

import copy
import tempfile
import typing
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from kinds import KINDS
from ranks import run_ranks
from torch import Tensor, distributed, nn, optim
from torch.nn.parallel import DistributedDataParallel

from distsparse.core import Method, Rewired, Signals, Sparsifier, find_weights
from distsparse.core.weights import unwrap
from distsparse.methods import methods, names
from distsparse.methods.params import Group
from distsparse.ops.allocation import num_active
from distsparse.train import checkpoint
from distsparse.train.rewind import Plan, Rewinder

STEPS = 14

# Small values for a small run; each is set where a method has such a keyword.
FAST = {"sparsity": 0.7, "delta_T": 3, "rounds": 4, "prune_fraction": 0.45}

# A keyword that matters only under another one.
REQUIRES = {
    "sensitivity_norm": {"allocation": "sensitivity"},
    "allocation_power": {"allocation": "erk"},
}

# Channels are few in a small network.
FAST_OF = {"rigl_structured": {"sparsity": 0.4, "alpha": 0.8}}

# Other values where the next one is too near to show in a small run.
ALTERNATIVES = {
    "temperature": [1.0],
    "rounds": [1],
    "gamma": [0.9],
    "rewind_to": [0.7],
    "T_start": [0.4],
    "allocation_power": [0.0],
}

# Keywords of the training loop, which the loop here has no part of; tests/train/test_rewind.py tries them.
OF_THE_LOOP = {("lottery", "start")}

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


@cache
def ticket(seed: int = 0, network: str = "conv") -> str:
    """The folder of a run's checkpoint, for methods that start from one."""
    folder = Path(tempfile.mkdtemp())
    trainer = finished(configured("rigl"), seed=seed, network=network)
    network_state, masks = trainer.model.state_dict(), trainer.sparsifier.topology.masks
    checkpoint.save(folder, network=network_state, masks=masks, state={})
    return str(folder)


def fast_values(name: str, network: str = "conv") -> dict[str, Any]:
    fields = methods.get(name).schema.model_fields
    values = {key: value for key, value in FAST.items() if key in fields} | FAST_OF.get(name, {})
    return values | ({"source": ticket(network=network)} if "source" in fields else {})


def configured(name: str, *, network: str = "conv", **changes: Any) -> Method:
    """The method with FAST's values, and others changed."""
    return methods.get(name).factory(**fast_values(name, network) | changes)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, *INPUT, generator=generator), torch.randint(4, (8,), generator=generator)


def plan(method: Method) -> Plan:
    """As many rounds as the method has, in about STEPS steps."""
    rewound = STEPS / (1 + (method.rounds - 1) * (1 - method.rewind_to))
    return Plan.of(method, steps_per_epoch=round(rewound), epochs=1)


def update_steps(method: Method) -> list[int]:
    """Where a run's updates are: by the method's own schedule, or between two rounds."""
    if method.rounds == 1:
        return method.update_schedule(STEPS)
    whole = plan(method)
    return [step for step in range(1, whole.total_steps) if whole.ends_round(step)]


def sparsity_of(method: Method, events: list[Rewired]) -> float:
    """The sparsity that the last of a run's events so far should have."""
    if len(events) == 1:
        return method.sparsity(0.0) if method.init else 0.0
    if method.rounds > 1:
        return method.sparsity_of_round(len(events) - 1)
    return method.sparsity_at(events[-1].step, STEPS)


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
        self.model: nn.Module = (NETWORKS | KINDS)[network]()
        if distributed.is_initialized():
            self.model = DistributedDataParallel(self.model)
        self.optimizer: optim.Optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.sparsifier = Sparsifier.attach(method, self.model, self.optimizer, total_steps=STEPS, seed=seed)
        self.rewinder = Rewinder(
            self.sparsifier,
            unwrap(self.model),
            optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9),
            plan(method),
            fresh=lambda: NETWORKS[network]().state_dict(),
        )
        self.last = plan(method).total_steps
        self.events: list[Rewired] = []

    def initialize(self) -> Trainer:
        self.events.append(self.sparsifier.initialize([batch(1000), batch(1001)], loss))
        self.rewinder.step(0)
        return self

    def train(self, first: int = 0, last: int | None = None, *, share: slice = slice(None)) -> Trainer:
        for step in range(first, self.last if last is None else last):
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
            torch.manual_seed(step)
            if rewound := self.rewinder.step(step + 1):
                self.events.append(rewound)
                self.check()
        return self

    def check(self) -> None:
        """Counts are exact, and inactive weights, gradients and optimizer state are zero."""
        sparsifier = self.sparsifier
        for name, weight in sparsifier.weights.items():
            mask = sparsifier.topology.masks[name]
            units = sparsifier.method.structure.units(mask)
            assert torch.equal(sparsifier.method.structure.expand(units, tuple(mask.shape)), mask)
            assert int(units.sum()) == sparsifier.topology.targets[name]
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
                "rewinder": self.rewinder.state_dict(),
            }
        )

    def restore(self, state: dict[str, Any]) -> Trainer:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sparsifier.load_state_dict(state["sparsifier"])
        self.rewinder.load_state_dict(state["rewinder"])
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
        method = configured(name, network=network)
        trainer = finished(method, network=network, optimizer=optimizer)  # checks every step
        topology = trainer.sparsifier.topology
        for event in trainer.events:
            events = trainer.events[: trainer.events.index(event) + 1]
            # Whole channels are counted as such, without those of the last layer, which all stay.
            channels = method.structure.tile == (1, -1)
            sizes = [mask.shape[1] if channels else 1 for mask in topology.masks.values()]
            layers = event.layers[:-1] if channels else event.layers
            if channels:
                assert event.layers[-1].nnz == event.layers[-1].num_weights
            totals = [layer.num_weights // size for layer, size in zip(layers, sizes, strict=False)]
            expected = num_active(sum(totals), sparsity_of(method, events))
            found = sum(layer.nnz // size for layer, size in zip(layers, sizes, strict=False))
            # A fan-in is rounded to whole weights, so a layer may be off by half a weight for each row.
            num_rows = sum(len(mask) for mask in topology.masks.values())
            assert abs(found - expected) <= (0 if method.structure.group == "layer" else num_rows / 2)
        for mask in topology.masks.values():
            if method.structure.group == "row":
                fan_in = mask.sum(1)
                assert len(fan_in[fan_in > 0].unique()) == 1
        updates = [event.step for event in trainer.events[1:]]
        assert updates == update_steps(method)
        assert trainer.sparsifier.statistics.num_updates == len(updates)
        if "delta_T" in methods.get(name).schema.model_fields:
            assert len(updates) >= 2

    def test_deterministic(self, name: str, network: str, optimizer: str) -> None:
        first, second = (
            finished(configured(name, network=network), network=network, optimizer=optimizer).outcome()
            for _ in range(2)
        )
        assert first == second

    # 5 is between two updates, 6 just before one.
    @pytest.mark.parametrize("interrupted", [5, 6])
    def test_resumed_equals_uninterrupted(
        self, name: str, network: str, optimizer: str, interrupted: int
    ) -> None:
        kind = {"network": network, "optimizer": optimizer}
        whole = Trainer(configured(name, network=network), **kind).initialize().train(0, interrupted)
        state = whole.state()
        whole.train(interrupted)
        resumed = (
            Trainer(configured(name, network=network), **kind, model_seed=1).restore(state).train(interrupted)
        )
        assert resumed.events == whole.events[-len(resumed.events) :] or not resumed.events
        assert resumed.outcome()[2] == whole.outcome()[2]
        assert resumed.sparsifier.statistics == whole.sparsifier.statistics
        for mask, expected in zip(
            resumed.sparsifier.topology.masks.values(), whole.sparsifier.topology.masks.values(), strict=True
        ):
            assert torch.equal(mask, expected)


STRUCTURES: dict[str, dict[str, Any]] = {
    "unstructured": {},
    "constant fan-in": {"group": "row"},
    "2:4": {"group": 4, "sparsity": 0.5},
    "1:4": {"group": 4},
    "tiles": {"tile": (2, 2)},
    "wide tiles": {"tile": (1, 5)},
}
STRUCTURED = [name for name in names() if {"group", "tile"} <= set(methods.get(name).schema.model_fields)]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", STRUCTURED)
class TestEveryStructure:
    def test_holds_after_every_update(self, name: str, network: str, structure: str) -> None:
        method = configured(name, **STRUCTURES[structure])
        trainer = Trainer(method, network=network).initialize()
        sparsifier = trainer.sparsifier
        self.check(sparsifier, num_wanted(sparsifier, method.sparsity(0.0) if method.init else 0.0))
        for step in range(trainer.last):
            num_updates = sparsifier.statistics.num_updates
            trainer.train(step, step + 1)  # checks counts, tiles and zeros
            if sparsifier.statistics.num_updates > num_updates:
                self.check(sparsifier, num_wanted(sparsifier, sparsity_of(method, trainer.events)))

    def check(self, sparsifier: Sparsifier, num_units: int) -> None:
        topology, group = sparsifier.topology, sparsifier.method.structure.group
        if group == "layer":
            assert sum(topology.targets.values()) == num_units
            return
        num_groups = one_in_each = 0
        for mask in topology.masks.values():
            size = mask.shape[1] if group == "row" else group
            per_group = {
                first: mask[:, first : first + size].sum(1).unique().tolist()
                for first in range(0, mask.shape[1], size)
            }
            # The same N in every group of every row; a narrower last group holds as many as it can.
            (fan_in,) = per_group[0]
            for first, found in per_group.items():
                assert found == [min(fan_in, mask.shape[1] - first)]
            num_groups += len(mask) * len(per_group)
            one_in_each += len(mask) * len(per_group) * (fan_in == 1)
        # Each N is rounded to nearest, but is at least 1; the error does not grow from update to update.
        error = sum(topology.targets.values()) - num_units
        assert -num_groups / 2 <= error <= num_groups / 2 + one_in_each

    def test_resumed_equals_uninterrupted(self, name: str, network: str, structure: str) -> None:
        method = configured(name, **STRUCTURES[structure])
        whole = Trainer(method, network=network).initialize().train(0, 5)
        state = whole.state()
        whole.train(5)
        resumed = Trainer(method, network=network, model_seed=1).restore(state).train(5)
        assert resumed.outcome()[2] == whole.outcome()[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gmp", "rigl", "set", "snfs"])
class TestEveryKindOfLayer:
    @pytest.mark.parametrize("structure", ["unstructured", "constant fan-in", "wide tiles"])
    def test_counts_are_exact_and_inactive_is_zero(self, name: str, kind: str, structure: str) -> None:
        method = configured(name, **STRUCTURES[structure])
        trainer = finished(method, network=kind)  # checks every step
        sparsifier = trainer.sparsifier
        assert not any(mask.all() for mask in sparsifier.topology.masks.values() if mask.numel() > 100)
        num_units = num_wanted(sparsifier, method.sparsity_at(max(sparsifier.update_schedule()), STEPS))
        TestEveryStructure().check(sparsifier, num_units)

    def test_resumed_equals_uninterrupted(self, name: str, kind: str) -> None:
        whole = Trainer(configured(name), network=kind, optimizer="adamw").initialize().train(0, 5)
        state = whole.state()
        whole.train(5)
        resumed = Trainer(configured(name), network=kind, optimizer="adamw", model_seed=1)
        assert resumed.restore(state).train(5).outcome()[2] == whole.outcome()[2]


def test_every_kind_of_layer_is_found() -> None:
    shapes = {kind: [tuple(w.shape) for w in find_weights(network())] for kind, network in KINDS.items()}
    assert shapes == {
        "attention": [(24, 8), (8, 8), (4, 72)],
        "attention of three projections": [(8, 8), (8, 4), (8, 6), (8, 8), (4, 72)],
        "transposed": [(16, 72), (4, 16)],
        "conv1d": [(6, 2, 5), (4, 6, 4), (4, 52)],
        "conv3d": [(8, 1, 2, 3, 3), (4, 128)],
        "depthwise": [(8, 2, 1, 1), (8, 1, 3, 3), (4, 128)],
        "tied": [(16, 72), (16, 16), (4, 16)],
    }


@pytest.mark.parametrize("tile", [(1, 4), (4, 1)])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", STRUCTURED)
def test_whole_aligned_tiles_are_dropped_and_grown(name: str, network: str, tile: tuple[int, int]) -> None:
    trainer = Trainer(configured(name, tile=tile), network=network).initialize()
    masks = dict(trainer.sparsifier.topology.masks)
    num_changed = 0
    for step in range(STEPS):
        trainer.train(step, step + 1)
        for layer, mask in trainer.sparsifier.topology.masks.items():
            rows, cols = torch.meshgrid(*(torch.arange(size) for size in mask.shape), indexing="ij")
            number = rows // tile[0] * mask.shape[1] + cols // tile[1]
            for changed in (mask & ~masks[layer], masks[layer] & ~mask):
                touched = torch.isin(number, number[changed])
                assert torch.equal(touched, changed), f"{layer}: a part of a tile"
                num_changed += int(changed.sum())
            masks[layer] = mask
    assert bool(num_changed) == bool(update_steps(trainer.sparsifier.method))


def num_wanted(sparsifier: Sparsifier, sparsity: float) -> int:
    """Active units of all layers at a sparsity."""
    units = [sparsifier.method.structure.units(mask).numel() for mask in sparsifier.topology.masks.values()]
    return num_active(sum(units), sparsity)


# A ranking over all layers gives them other densities than uniform, and so does redistribution.
UNIFORM = [
    name
    for name in STRUCTURED
    if "allocation" in methods.get(name).schema.model_fields
    and not any(move.name.startswith("redistribute") for move in configured(name).update)
]


@pytest.mark.parametrize("name", UNIFORM)
def test_two_of_four_is_two_of_every_four(name: str) -> None:
    """With the same density in every layer, and columns that four divides."""
    method = configured(name, sparsity=0.5, group=4, allocation="uniform")
    masks = finished(method, network="linear").sparsifier.topology.masks
    for mask in list(masks.values())[:2]:  # 72 and 16 inputs
        assert (mask.reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("name", STRUCTURED)
def test_tile_and_group_exclude_each_other(name: str) -> None:
    with pytest.raises(ValueError, match=r"tile = \(2, 2\) with group = 4: they exclude each other"):
        configured(name, tile=(2, 2), group=4)
    with pytest.raises(ValueError, match=rf"{name}\.group = 1: .*greater than 1"):
        configured(name, group=1)
    with pytest.raises(ValueError, match=rf"{name}\.tile = 0: .*greater than or equal to 1"):
        configured(name, tile=(0, 2))


@pytest.mark.parametrize("name", names())
def test_the_seed_matters_where_a_method_is_random(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draws, method = [], configured(name)
    drawn = Signals.random_scores
    monkeypatch.setattr(Signals, "random_scores", lambda self: draws.append(1) or drawn(self))
    outcomes = [finished(method, seed=seed).outcome() for seed in (0, 1)]
    assert (outcomes[0] != outcomes[1]) == bool(draws)


def alternatives(name: str, field: str, value: Any) -> list[Any]:
    """Other values of a keyword, from its annotation; a number has one of the first two that are valid."""
    if field == "source":
        return [ticket(seed=1)]
    if field in ALTERNATIVES:
        return ALTERNATIVES[field]
    entry = methods.get(name)
    annotation = entry.schema.model_fields[field].annotation
    if typing.get_origin(annotation) is Literal:
        return [choice for choice in typing.get_args(annotation) if choice != value]
    if annotation is bool:
        return [not value]
    if annotation == typing.get_args(Group)[0]:
        return ["row", 4]
    if typing.get_origin(annotation) is tuple:
        return [(2, 2), (1, 3)]
    assert annotation in (int, float), f"teach this test other values of {field}: {annotation}"
    candidates = (value + 1, value - 1) if annotation is int else (value / 2 or 0.25, (value + 1) / 2)
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
    ("name", "field"),
    [
        (name, field)
        for name in names()
        for field in methods.get(name).schema.model_fields
        if (name, field) not in OF_THE_LOOP
    ],
)
def test_every_keyword_changes_the_outcome(name: str, field: str) -> None:
    context = REQUIRES.get(field, {})
    defaults = methods.get(name).parse(fast_values(name), name)
    base = outcome_of(name, tuple(context.items()))
    for value in alternatives(name, field, defaults[field]):
        changed = outcome_of(name, (*context.items(), (field, value)))
        assert changed != base, f"{field} = {value!r} changes nothing against {defaults[field]!r}"


def all_methods(rank: int) -> dict[str, Any]:
    return {
        name: Trainer(configured(name)).initialize().train(share=slice(rank, None, 2)).outcome()
        for name in names()
    }


def test_two_ranks_agree() -> None:
    first, second = run_ranks(all_methods, 2)
    assert list(first) == names()
    for name in names():
        assert first[name] == second[name], name
        # Each rank saw half of every batch, and yet the counts and updates are those of one process.
        assert first[name][0] == finished(configured(name)).outcome()[0], name
