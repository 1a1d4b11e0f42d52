"""What every method in the registry must do; a new one is picked up by its name alone."""

from __future__ import annotations

import copy
import hashlib
import tempfile
import typing
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from kinds import KINDS
from ranks import run_ranks
from torch import Tensor, distributed, nn, optim
from torch.nn.parallel import DistributedDataParallel

from distsparse.core import Method, Rewired, Signals, Sparsifier, Topology, find_weights
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

STRUCTURES: dict[str, dict[str, Any]] = {
    "unstructured": {},
    "constant fan-in": {"group": "row"},
    "2:4": {"group": 4, "sparsity": 0.5},
    "1:4": {"group": 4},
    "tiles": {"tile": (2, 2)},
    "wide tiles": {"tile": (1, 5)},
}
STRUCTURED = [name for name in names() if {"group", "tile"} <= set(methods.get(name).schema.model_fields)]


class Case(NamedTuple):
    """A run of a method; the names are keys of the tables above."""

    name: str
    structure: str
    network: str
    optimizer: str

    @property
    def is_possible(self) -> bool:
        """Whether the method has the structure's keywords."""
        return STRUCTURES[self.structure].keys() <= methods.get(self.name).schema.model_fields.keys()

    def method(self, **changes: Any) -> Method:
        return configured(self.name, network=self.network, **STRUCTURES[self.structure] | changes)

    def trainer(self, *, model_seed: int = 0) -> Trainer:
        return Trainer(self.method(), network=self.network, optimizer=self.optimizer, model_seed=model_seed)


CASES = [
    case
    for name in names()
    for structure in STRUCTURES
    for network in NETWORKS
    for optimizer in OPTIMIZERS
    if (case := Case(name, structure, network, optimizer)).is_possible
]
every_case = pytest.mark.parametrize("case", CASES, ids="-".join)


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
        self.topologies: list[Topology] = []
        """after each event"""

    def initialize(self) -> Trainer:
        self.record(self.sparsifier.initialize([batch(1000), batch(1001)], loss))
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
                self.record(event)
            if not (event and event.skip_optimizer_step):
                self.optimizer.step()
            self.check()
            # torch.manual_seed would look for accelerators too, which takes a fifth of a run.
            torch.default_generator.manual_seed(step)
            if rewound := self.rewinder.step(step + 1):
                self.record(rewound)
                self.check()
        return self

    def record(self, event: Rewired) -> None:
        self.events.append(event)
        self.topologies.append(self.sparsifier.topology)

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
        state = copy.deepcopy(state)  # optimizers go on with the tensors that they are given
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
            *self.values(),
        )

    def values(self) -> tuple[str, str]:
        """Digests of all weights, and of the whole optimizer state."""
        states = (self.optimizer.state[parameter] for parameter in self.model.parameters())
        return (
            digest(self.model.state_dict().values()),
            digest(value for state in states for value in state.values() if torch.is_tensor(value)),
        )


def digest(tensors: Iterable[Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def finished(method: Method, **keywords: Any) -> Trainer:
    return Trainer(method, **keywords).initialize().train()


INTERRUPTED = [5, 6]
"""between two updates, and just before one"""


@cache
def uninterrupted(case: Case) -> tuple[Trainer, dict[int, dict[str, Any]]]:
    """A whole run, and its states after INTERRUPTED steps."""
    trainer, states, first = case.trainer().initialize(), {}, 0
    for step in INTERRUPTED:
        states[step] = trainer.train(first, step).state()
        first = step
    return trainer.train(first), states


def num_wanted(method: Method, topology: Topology, sparsity: float) -> int:
    """Active units of all layers at a sparsity."""
    units = [method.structure.units(mask).numel() for mask in topology.masks.values()]
    # Where channels are the units, the last layer keeps all of its own.
    kept = units.pop() if method.structure.tile == (1, -1) else 0
    return num_active(sum(units), sparsity) + kept


def check_counts(trainer: Trainer) -> None:
    """After every update all layers hold what the schedule says, and each group of a layer the same."""
    method = trainer.sparsifier.method
    for number, (event, topology) in enumerate(zip(trainer.events, trainer.topologies, strict=True), 1):
        assert [layer.nnz for layer in event.layers] == [topology.nnz(name) for name in topology.masks]
        wanted = num_wanted(method, topology, sparsity_of(method, trainer.events[:number]))
        error = sum(topology.targets.values()) - wanted
        if method.structure.group == "layer":
            assert error == 0
        else:
            # Each N is rounded to nearest, but is at least 1; the error does not grow from update to update.
            num_groups, one_in_each = check_groups(method, topology.masks.values())
            assert -num_groups / 2 <= error <= num_groups / 2 + one_in_each


def check_groups(method: Method, masks: Iterable[Tensor]) -> tuple[int, int]:
    """Return the number of groups, and of those that hold one weight."""
    group, ablates = method.structure.group, any(move.name.startswith("ablate") for move in method.update)
    num_groups = one_in_each = 0
    for mask in masks:
        size = mask.shape[1] if group == "row" else group
        rows = mask[mask.any(1)] if ablates else mask
        per_group = {
            first: rows[:, first : first + size].sum(1).unique().tolist()
            for first in range(0, mask.shape[1], size)
        }
        # The same N in every group of every row; a narrower last group holds as many as it can.
        (each,) = per_group[0]
        for first, found in per_group.items():
            assert found == [min(each, mask.shape[1] - first)]
        num_groups += len(mask) * len(per_group)
        one_in_each += len(mask) * len(per_group) * (each == 1)
    return num_groups, one_in_each


@every_case
class TestEveryCase:
    """Each method, with every structure that it takes, in both networks, with both optimizers."""

    def test_counts_are_exact_and_inactive_is_zero(self, case: Case) -> None:
        trainer, _ = uninterrupted(case)  # checks units and zeros in every step
        check_counts(trainer)
        updates = [event.step for event in trainer.events[1:]]
        assert updates == update_steps(trainer.sparsifier.method)
        assert trainer.sparsifier.statistics.num_updates == len(updates)
        if "delta_T" in methods.get(case.name).schema.model_fields:
            assert len(updates) >= 2

    def test_deterministic(self, case: Case) -> None:
        assert case.trainer().initialize().train().outcome() == uninterrupted(case)[0].outcome()

    @pytest.mark.parametrize("interrupted", INTERRUPTED)
    def test_resumed_equals_uninterrupted(self, case: Case, interrupted: int) -> None:
        whole, states = uninterrupted(case)
        resumed = case.trainer(model_seed=1).restore(states[interrupted]).train(interrupted)
        assert resumed.events == whole.events[len(whole.events) - len(resumed.events) :]
        assert resumed.values() == whole.values()
        assert resumed.sparsifier.statistics == whole.sparsifier.statistics
        for mask, expected in zip(
            resumed.sparsifier.topology.masks.values(), whole.sparsifier.topology.masks.values(), strict=True
        ):
            assert torch.equal(mask, expected)

    def test_two_ranks_agree(self, case: Case, two_ranks: list[dict[str, Any]]) -> None:
        first, second = (outcomes["-".join(case)] for outcomes in two_ranks)
        assert first == second
        # Each rank saw half of every batch, and yet the updates are those of one process.
        events = uninterrupted(case)[0].events
        assert first[0] == [event.step for event in events if event.step <= OF_RANKS]


OF_RANKS = 8
"""steps on two ranks, which wait for each other in each: two updates, and a round of several"""


@pytest.fixture(scope="module")
def two_ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Outcomes on each of two ranks, of the cases selected on the command line."""
    wanted = [item.callspec.params["case"] for item in request.session.items if is_of_ranks(item, request)]
    return run_ranks(outcomes_of_rank, 2, wanted)


def is_of_ranks(item: Any, request: pytest.FixtureRequest) -> bool:
    return item.path == request.path and "two_ranks" in item.fixturenames


def outcomes_of_rank(rank: int, cases: Sequence[Case]) -> dict[str, Any]:
    outcomes = {}
    for case in cases:
        try:
            trainer = case.trainer().initialize().train(last=OF_RANKS, share=slice(rank, None, 2))
            check_counts(trainer)
        except Exception as error:
            error.add_note("-".join(case))
            raise
        outcomes["-".join(case)] = trainer.outcome()
    return outcomes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gmp", "rigl", "set", "snfs"])
class TestEveryKindOfLayer:
    @pytest.mark.parametrize("structure", ["unstructured", "constant fan-in", "wide tiles"])
    def test_counts_are_exact_and_inactive_is_zero(self, name: str, kind: str, structure: str) -> None:
        trainer = finished(configured(name, **STRUCTURES[structure]), network=kind)  # checks every step
        check_counts(trainer)
        masks = trainer.sparsifier.topology.masks
        assert not any(mask.all() for mask in masks.values() if mask.numel() > 100)

    def test_resumed_equals_uninterrupted(self, name: str, kind: str) -> None:
        whole = Trainer(configured(name), network=kind, optimizer="adamw").initialize().train(0, 5)
        state = whole.state()
        whole.train(5)
        resumed = Trainer(configured(name), network=kind, optimizer="adamw", model_seed=1)
        assert resumed.restore(state).train(5).values() == whole.values()


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


def alternatives(case: Case, field: str, value: Any) -> list[Any]:
    """Other values of a keyword, from its annotation; a number has one of the first two that are valid."""
    if field == "source":
        return [ticket(seed=1, network=case.network)]
    if field in ALTERNATIVES:
        return ALTERNATIVES[field]
    entry = methods.get(case.name)
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
            entry.parse({field: candidate}, case.name)
        except ValueError:
            continue
        return [candidate]
    raise AssertionError(f"no other value of {case.name}.{field} found")


@cache
def outcome_of(case: Case, changes: tuple[tuple[str, Any], ...]) -> tuple[Any, ...]:
    method = case.method(**dict(changes))
    return finished(method, network=case.network, optimizer=case.optimizer).outcome()


# What a keyword does depends on structures, whose moves are others, and hardly on network and optimizer: two
# of the cases of a method stand for all.
KEYWORDS = [
    (case, field)
    for name in names()
    for case in (
        Case(name, "unstructured", "conv", "sgd"),
        Case(name, "constant fan-in", "conv", "adamw"),
    )
    if case.is_possible
    for field in methods.get(name).schema.model_fields
    if (name, field) not in OF_THE_LOOP
    and (case.structure == "unstructured" or field not in ("group", "tile"))
]


@pytest.mark.parametrize(
    ("case", "field"), KEYWORDS, ids=["-".join((*case, field)) for case, field in KEYWORDS]
)
def test_every_keyword_changes_the_outcome(case: Case, field: str) -> None:
    context = REQUIRES.get(field, {})
    defaults = methods.get(case.name).parse(fast_values(case.name, case.network), case.name)
    base = outcome_of(case, tuple(context.items()))
    for value in alternatives(case, field, defaults[field]):
        changed = outcome_of(case, (*context.items(), (field, value)))
        assert changed != base, f"{field} = {value!r} changes nothing against {defaults[field]!r}"
