"""Weights that FSDP2 has sharded: real processes choose the topology that one process chooses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import KINDS
from methods.test_conformance import FAST_OF, NETWORKS, STRUCTURED, STRUCTURES, configured, plan
from ranks import run_ranks
from torch import Tensor, distributed, nn, optim

from distsparse.core import Rewired, Sparsifier
from distsparse.dist import Whole, current, layout
from distsparse.methods import methods, names
from distsparse.ops import select
from distsparse.train.parallel import shard
from distsparse.train.rewind import Rewinder

STEPS, BATCH = 14, 8
Case = tuple[str, str, str, bool, float | None]
"""method, structure, network, planted ties, sparsity"""
REFUSED = {"grasp", "synflow"}
# Of the last layer's one row all ranks but the first have none.
NARROW = {"narrow": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.ReLU(), nn.Linear(9, 1))}
KINDS_SHARDED = ("attention", "attention of three projections", "transposed", "conv1d", "depthwise", "tied")


def methods_and_structures() -> Iterator[tuple[str, str]]:
    for name in names():
        for structure in STRUCTURES if name in STRUCTURED else ("unstructured",):
            if name not in REFUSED and STRUCTURES[structure].get("tile", (1, 1))[0] == 1:
                yield name, structure


def cases(wanted: Callable[[str, str], bool] = lambda name, structure: True) -> list[Case]:
    """Each method with each structure it has: as in the conformance suite with ties everywhere, and at 0.99."""
    found: list[Case] = []
    for name, structure in methods_and_structures():
        if wanted(name, structure):
            found.append((name, structure, "conv", True, None))
            if name != "lottery":  # its ticket is of another network
                found.append((name, structure, "narrow", False, None))
            if "sparsity" in methods.get(name).schema.model_fields and "sparsity" not in STRUCTURES[structure]:
                found += [(name, structure, "linear", ties, 0.9) for ties in (True, False)]
                found.append((name, structure, "linear", True, 0.99))
    return found


def batch(step: int, *, exact: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, 2, 6, 6, generator=generator, dtype=torch.float64)
    targets = torch.randn(BATCH, 4, generator=generator, dtype=torch.float64)
    return (inputs.round(), targets.round()) if exact else (inputs, targets)


def loss(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    return (model(sample[0]) * sample[1]).sum(1).mean()


def network(name: str, *, exact: bool) -> nn.Module:
    """With ``exact`` all weights are small whole numbers, and so are all gradients: ties everywhere."""
    torch.manual_seed(0)
    model = (NETWORKS | KINDS | NARROW)[name]().double()
    if exact:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((4 * torch.randn_like(parameter)).round().clamp(-3, 3))
    return model


class Trainer:
    """A run on this rank's share of each batch; the model is sharded where there are several ranks."""

    def __init__(self, case: Case, *, optimizer: str = "sgd") -> None:
        name, structure, network_name, self.exact, sparsity = case
        changes = STRUCTURES[structure] | ({} if sparsity is None else {"sparsity": sparsity})
        method = configured(name, network=network_name, **changes)
        self.comm = current()
        self.model = network(network_name, exact=self.exact)
        if self.comm.world_size > 1:
            shard(self.model, torch.device("cpu"))
        lr = 0.0 if self.exact else 0.05
        self.optimizer: optim.Optimizer = (
            optim.SGD(self.model.parameters(), lr=lr, momentum=0.5)
            if optimizer == "sgd"
            else optim.AdamW(self.model.parameters(), lr=lr)
        )
        self.plan = plan(method)
        self.sparsifier = Sparsifier.attach(
            method, self.model, self.optimizer, total_steps=self.plan.total_steps, seed=0
        )
        self.rewinder = Rewinder(
            self.sparsifier,
            self.model,
            optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9),
            self.plan,
            fresh=lambda: network(network_name, exact=self.exact).state_dict(),
        )
        self.events: list[Rewired] = []

    def share(self, step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = batch(step, exact=self.exact)
        rank, num = self.comm.rank, self.comm.world_size
        return inputs[rank::num], targets[rank::num]

    def run(self) -> Trainer:
        self.events.append(self.sparsifier.initialize([self.share(1000), self.share(1001)], loss))
        self.rewinder.step(0)
        for step in range(self.plan.total_steps):
            self.optimizer.zero_grad()
            loss(self.model, self.share(step)).backward()
            event = self.sparsifier.step()
            self.check()
            if event:
                self.events.append(event)
            if not (event and event.skip_optimizer_step):
                self.optimizer.step()
            self.check()
            if rewound := self.rewinder.step(step + 1):
                self.events.append(rewound)
        return self

    def check(self) -> None:
        """Inactive weights, gradients and optimizer state of this rank's rows are zero."""
        for name, weight in self.sparsifier.weights.items():
            mask = self.sparsifier.topology.masks[name]
            for value in self.optimizer.state[weight.parameter].values():
                if value.shape == weight.parameter.shape:
                    assert (weight.matrix(layout.local(value))[~mask] == 0).all()
            assert (weight.rows[~mask] == 0).all()
            gradient = weight.gradient_rows
            assert gradient is None or (gradient[~mask] == 0).all()

    def outcome(self) -> Any:
        """Masks after each update as digests, counts and events; the weights at the end."""
        weights = {name: layout.whole(p.detach()) for name, p in self.model.named_parameters()}
        return {
            "events": [[event.step, [vars(layer) for layer in event.layers]] for event in self.events],
            "sparsity": self.sparsifier.sparsity,
            "sizes": [weight.rows.numel() for weight in self.sparsifier.weights.values()],
            "weights": {name: value.tolist() for name, value in weights.items()},
        }


def outcome(case: Case) -> Any:
    return Trainer(case).run().outcome()


@cache
def of_one_process(case: Case) -> Any:
    return json.loads(json.dumps(outcome(case)))


def check_case(case: Case, results: list[Any]) -> None:
    """Every rank saw what one process sees, and the ranks' parts are the whole."""
    expected = of_one_process(case)
    sizes = [sum(parts) for parts in zip(*(result["sizes"] for result in results), strict=True)]
    assert sizes == expected["sizes"]
    for result in results:
        assert result["events"] == expected["events"], case
        assert result["sparsity"] == expected["sparsity"]
        for name, values in expected["weights"].items():
            torch.testing.assert_close(
                torch.tensor(result["weights"][name]), torch.tensor(values), rtol=1e-9, atol=1e-12
            )


def all_outcomes(chosen: list[Case]) -> Any:
    return [outcome(case) for case in chosen]


SIZES = (7, 0, 3, 1)
"""rows on each of four ranks; two ranks have the first two"""


def selections(score: Tensor, candidates: Tensor, whole: Whole) -> Any:
    """Masks and counts at many k, of scores given for the rows here."""
    num = whole.count(candidates)
    parts = [lambda: (score, candidates), lambda: (score.flip(1), candidates), lambda: (-score, candidates)]
    return {
        "masks": [
            whole.rows(whole.top_k_mask(score, k, candidates)).int().tolist() for k in range(0, num + 1, 3)
        ],
        "counts": [whole.top_k_counts(parts, k) for k in range(0, 3 * num + 1, 5)],
    }


def scores(dtype: torch.dtype, *, ties: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(11, 9, generator=generator, dtype=torch.float64)
    values = (2 * values).round() / 2 if ties else values
    candidates = torch.rand(11, 9, generator=generator) < 0.8
    if dtype.is_floating_point:
        values[2, 3], values[4, 4], values[8, 1] = float("inf"), float("-inf"), -0.0
        return values.to(dtype), candidates
    scaled = values.mul(2.0 if ties else 1e3).to(dtype) if dtype == torch.uint8 else (values * 2**60).to(dtype)
    return scaled, candidates


KIND_OF_SCORES = list(
    itertools.product((torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8), (False, True))
)


def choose_all(rows: Callable[[Tensor], Tensor], whole: Whole) -> Any:
    found = []
    for dtype, ties in KIND_OF_SCORES:
        score, candidates = scores(dtype, ties=ties)
        found.append(selections(rows(score), rows(candidates), whole))
    return found


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except (ValueError, FloatingPointError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def choices() -> Any:
    """What this rank finds of scores whose rows lie on all of them, some on none."""
    comm = current()
    sizes = [11 - sum(SIZES[1 : comm.world_size]), *SIZES[1 : comm.world_size]]
    first = sum(sizes[: comm.rank])
    whole = Whole(comm)

    def rows(of: Tensor) -> Tensor:
        return of[first : first + sizes[comm.rank]]

    score, candidates = scores(torch.float64, ties=False)
    spoilt = score.clone()
    spoilt[0, 0] = float("nan")
    candidates[0, 0] = True
    values = rows(score)
    numbers = torch.arange(11 * 2).reshape(11, 2)
    return {
        "choices": choose_all(rows, whole),
        "nan": error_of(lambda: whole.top_k_mask(rows(spoilt), 5, rows(candidates))),
        "nan counts": error_of(lambda: whole.top_k_counts([lambda: (rows(spoilt), rows(candidates))], 5)),
        "together": error_of(lambda: whole.together(partial(_raise, comm.rank == 0))),
        "mean": whole.mean(values[values.isfinite()]),
        "total": whole.total(rows(numbers)),
        "any": [whole.any(rows(numbers) == 21), whole.any(rows(numbers) == 22)],
        "rows": whole.rows(rows(numbers)).tolist(),
        "ranks": whole.rows(whole.ranks(rows(score.round()))).tolist(),
    }


def _raise(wanted: bool) -> None:
    if wanted:
        raise FloatingPointError("here")


def check_choices(results: list[Any]) -> None:
    score, _ = scores(torch.float64, ties=False)
    for result in results:
        for kind, found, expected in zip(
            KIND_OF_SCORES, result["choices"], choose_all(lambda of: of, Whole()), strict=True
        ):
            assert found == expected, kind
        assert result["nan"] == result["nan counts"] == "FloatingPointError: a score is NaN"
        assert result["together"].startswith("FloatingPointError: ")
        assert result["mean"] == pytest.approx(float(score[score.isfinite()].mean()))
        assert (result["total"], result["any"]) == (231, [True, False])
        assert result["rows"] == torch.arange(22).reshape(11, 2).tolist()
        assert result["ranks"] == torch.unique(score.round(), return_inverse=True)[1].tolist()


def test_one_process_chooses_by_ops() -> None:
    score, candidates = scores(torch.float64, ties=True)
    assert torch.equal(Whole().top_k_mask(score, 20, candidates), select.top_k_mask(score, 20, candidates))
    assert not Whole().is_sharded
    assert error_of(lambda: Whole().together(partial(_raise, True))) == "FloatingPointError: here"


def refusals() -> Any:
    model = shard(network("linear", exact=False), torch.device("cpu"))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    partly = nn.Sequential(network("linear", exact=False), nn.Linear(4, 4).double())
    shard(partly[0], torch.device("cpu"))

    def attach(method: Any, of: nn.Module = model) -> str:
        by = optimizer if of is model else optim.SGD(of.parameters(), lr=0.1)
        return error_of(lambda: Sparsifier.attach(method, of, by, total_steps=STEPS, seed=0))

    return {
        "grasp": attach(configured("grasp")),
        "synflow": attach(configured("synflow")),
        "lamp": attach(configured("gmp", allocation="lamp")),
        "layer_scan": attach(configured("static", allocation="layer_scan")),
        "tile": attach(configured("rigl", tile=(2, 2))),
        "partly": attach(configured("rigl"), partly),
    }


# The smallest set that takes every branch: all else is slow.
QUICK = [
    ("rigl", "unstructured", "conv", True, None),
    ("rigl", "unstructured", "linear", False, 0.9),
    ("rigl", "2:4", "conv", True, None),
    ("set", "wide tiles", "conv", True, None),
    ("srigl", "unstructured", "conv", True, None),
    ("snfs", "constant fan-in", "linear", False, 0.9),
    ("snfs", "unstructured", "linear", True, 0.99),
    ("dsr", "unstructured", "linear", True, 0.9),
    ("granet", "unstructured", "linear", True, 0.9),
    ("acdc", "unstructured", "conv", True, None),
    ("acdc", "constant fan-in", "narrow", True, None),
    ("imp", "unstructured", "conv", True, None),
    ("snip", "unstructured", "conv", False, None),
    ("rigl_structured", "unstructured", "conv", False, None),
    ("lottery", "unstructured", "conv", True, None),
    ("rigl", "unstructured", "attention", False, 0.9),
    ("rigl", "unstructured", "transposed", False, 0.9),
    ("rigl", "unstructured", "tied", True, 0.9),
    ("rigl", "unstructured", "narrow", True, None),
    ("snfs", "2:4", "narrow", False, None),
    ("set", "constant fan-in", "narrow", True, None),
    ("srigl", "unstructured", "narrow", False, None),
    ("gmp", "wide tiles", "narrow", True, None),
    ("rigl_structured", "unstructured", "narrow", False, None),
]


def two_ranks_quickly(rank: int) -> Any:
    return {"outcomes": all_outcomes(QUICK), "choices": choices(), "refusals": refusals()}


@pytest.fixture(scope="module")
def two_ranks() -> list[Any]:
    return run_ranks(two_ranks_quickly, 2)


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_two_ranks_choose_what_one_process_chooses(two_ranks: list[Any], case: Case) -> None:
    check_case(case, [result["outcomes"][QUICK.index(case)] for result in two_ranks])


def test_choices_over_ranks_are_those_of_one_process(two_ranks: list[Any]) -> None:
    check_choices([result["choices"] for result in two_ranks])


def test_what_cannot_run_sharded_is_refused(two_ranks: list[Any]) -> None:
    for result in two_ranks:
        found = result["refusals"]
        assert "prune(gradient_flow, " in found["grasp"] and "derivative of gradients" in found["grasp"]
        assert "prune(synaptic_flow, " in found["synflow"] and "absolute weights" in found["synflow"]
        assert "prune(magnitude, lamp) looks at whole layers" in found["lamp"]
        assert "prune(random, layer_scan) reads the loss" in found["layer_scan"]
        assert "tile = (2, 2): on sharded weights a tile must lie in one row" in found["tile"]
        assert "weight '1.weight' is not sharded, but '0.1.weight' is" in found["partly"]


def wide(rank: int) -> Any:
    chosen = cases() + of_every_kind()
    return {"outcomes": all_outcomes(chosen), "choices": choices()}


def of_every_kind() -> list[Case]:
    return [
        (name, structure, kind, ties, None)
        for kind in KINDS_SHARDED
        for name, structure, ties in (
            ("rigl", "unstructured", True),
            ("snfs", "constant fan-in", False),
            ("gmp", "wide tiles", True),
        )
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_method_and_structure(num_ranks: int, tmp_path: Path) -> None:
    results = run_ranks(wide, num_ranks)
    check_choices([result["choices"] for result in results])
    for number, case in enumerate(cases() + of_every_kind()):
        check_case(case, [result["outcomes"][number] for result in results])


def test_the_wide_matrix_leaves_no_method_out() -> None:
    assert {case[0] for case in cases()} == set(names()) - REFUSED
    assert set(FAST_OF) <= {case[0] for case in cases()}
    assert len(cases()) > 150
