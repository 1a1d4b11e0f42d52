"""Moves on 2 × 3 matrices, by hand."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from distsparse.core import (
    Context,
    Criterion,
    Move,
    Signals,
    Topology,
    allocator,
    drop,
    gradient,
    grow,
    magnitude,
    prune,
    random,
    redistribute,
)
from distsparse.core.allocators import AllocationName
from distsparse.core.criteria import (
    gradient_flow,
    magnitude_and_gradient,
    momentum,
    saliency,
    synaptic_flow,
)
from distsparse.core.moves import by_layer, run
from distsparse.ops import counter_rng
from distsparse.ops.allocation import num_active
from distsparse.ops.schedule import constant, cosine
from distsparse.ops.structure import Structure

WEIGHT = torch.tensor([[0.5, -0.1, 0.0], [0.2, -0.9, 0.0]])
ACTIVE = torch.tensor([[True, True, False], [True, True, False]])
GRADIENT = torch.tensor([[0.1, 0.3, -2.0], [0.4, 0.2, 0.5]])


def context(
    masks: Mapping[str, Tensor],
    *,
    weights: Mapping[str, Tensor] | None = None,
    gradients: Mapping[str, Tensor] | None = None,
    targets: Mapping[str, int] | None = None,
    before: Mapping[str, Tensor] | None = None,
    progress: float = 0.0,
    sparsity: float = 0.5,
    seed: int = 0,
) -> Context:
    def signals(name: str, purpose: str) -> Signals:
        grad = None if gradients is None else gradients[name]
        return Signals(
            weight=masks[name].float() if weights is None else weights[name],
            key=counter_rng.key(seed, 7, name, purpose),
            grad=grad,
            grad_abs=None if grad is None else grad.abs(),
        )

    counts = {name: int(mask.sum()) for name, mask in (before or masks).items()}
    topology = Topology(masks, targets or counts)
    return Context(
        topology=topology,
        before=Topology(before or masks, counts),
        shapes={name: tuple(mask.shape) for name, mask in masks.items()},
        signals=signals,
        progress=progress,
        sparsity=sparsity,
    )


def rigl_context(**changes: float) -> Context:
    return context({"w": ACTIVE}, weights={"w": WEIGHT}, gradients={"w": GRADIENT}, **changes)


def test_drop_takes_the_smallest_magnitudes() -> None:
    # int(0.5 · 4) = 2 of |.5| |-.1| |.2| |-.9|: -.1 and .2 go.
    after = drop(magnitude, constant(0.5)).apply(rigl_context())
    assert after.masks["w"].tolist() == [[True, False, False], [False, True, False]]
    assert after.targets == {"w": 4}


def test_prune_may_protect_the_last_layer() -> None:
    # Half of the first layer's six; .5, .2 and -.9 are its largest.
    masks = {"a": torch.ones(2, 3, dtype=torch.bool), "b": torch.ones(1, 4, dtype=torch.bool)}
    weights = {"a": WEIGHT, "b": torch.zeros(1, 4)}
    move = prune(magnitude, allocation=allocator("uniform"), protect_outputs=True)
    after = move.apply(context(masks, weights=weights))
    assert after.targets == {"a": 3, "b": 4}
    assert after.masks["a"].tolist() == [[True, False, False], [True, True, False]]
    assert after.masks["b"].all()
    with pytest.raises(ValueError, match="b: an output layer is not pruned, and there is no other"):
        move.apply(context({"b": masks["b"]}))


@pytest.mark.parametrize(("fraction", "dropped"), [(0.0, 0), (0.24, 0), (0.25, 1), (0.74, 2), (1.0, 4)])
def test_drop_counts_are_rounded_down(fraction: float, dropped: int) -> None:
    after = drop(magnitude, constant(fraction)).apply(rigl_context())
    assert after.nnz("w") == 4 - dropped


def test_drop_fraction_follows_its_schedule() -> None:
    # α/2 (1 + cos π/2) = 0.5 of 4, and 0 at T_end
    move = drop(magnitude, cosine(1.0))
    assert move.apply(rigl_context(progress=0.5)).nnz("w") == 2
    assert move.apply(rigl_context(progress=1.0)).nnz("w") == 4


def test_drop_is_a_fraction_of_each_layers_active_weights() -> None:
    masks = {"a": torch.ones(1, 10, dtype=torch.bool), "b": torch.arange(10).reshape(1, 10) < 4}
    after = drop(magnitude, constant(0.5)).apply(context(masks))
    assert (after.nnz("a"), after.nnz("b")) == (5, 2)


def test_rigl_update_by_hand() -> None:
    # Kept: .5 and -.9. Of the others |-2.0| and |.5| are the largest gradients; the dropped have .3 and .4.
    after = run((drop(magnitude, constant(0.5)), grow(gradient)), rigl_context())
    assert after.masks["w"].tolist() == [[True, False, True], [False, True, True]]
    assert after.targets == {"w": 4}


def test_a_dropped_weight_may_come_back() -> None:
    gradients = {"w": torch.tensor([[0.0, 3.0, -2.0], [0.4, 0.2, 0.5]])}
    moves = (drop(magnitude, constant(0.5)), grow(gradient))
    after = run(moves, context({"w": ACTIVE}, weights={"w": WEIGHT}, gradients=gradients))
    assert after.masks["w"].tolist() == [[True, True, True], [False, True, False]]


def test_excluding_dropped_weights() -> None:
    gradients = {"w": torch.tensor([[0.0, 3.0, -2.0], [0.4, 0.2, 0.5]])}
    moves = (drop(magnitude, constant(0.5)), grow(gradient, exclude_dropped=True))
    after = run(moves, context({"w": ACTIVE}, weights={"w": WEIGHT}, gradients=gradients))
    assert after.masks["w"].tolist() == [[True, False, True], [False, True, True]]


def test_excluding_dropped_weights_gives_way_to_the_exact_count() -> None:
    # Three go (.5, -.1, .2) and only two other places exist: the best of the dropped comes back.
    moves = (drop(magnitude, constant(0.75)), grow(gradient, exclude_dropped=True))
    after = run(moves, rigl_context())
    assert after.masks["w"].tolist() == [[False, False, True], [True, True, True]]


def test_a_dense_layer_stays_dense() -> None:
    for exclude_dropped in (False, True):
        moves = (drop(magnitude, constant(0.5)), grow(gradient, exclude_dropped=exclude_dropped))
        full = {"w": torch.ones(2, 3, dtype=torch.bool)}
        after = run(moves, context(full, weights={"w": WEIGHT}, gradients={"w": GRADIENT}))
        assert after.masks["w"].all()


def test_grow_fills_vacancies_and_nothing_else() -> None:
    kept = torch.tensor([[True, False, False], [False, False, False]])
    grown = grow(gradient).apply(context({"w": kept}, gradients={"w": GRADIENT}, targets={"w": 3}))
    assert grown.masks["w"].tolist() == [[True, False, True], [False, False, True]]
    unchanged = grow(gradient).apply(context({"w": kept}, gradients={"w": GRADIENT}))
    assert torch.equal(unchanged.masks["w"], kept)


def test_prune_cuts_each_layer_to_its_share_by_magnitude() -> None:
    masks = {"a": torch.ones(2, 3, dtype=torch.bool), "b": torch.ones(2, 2, dtype=torch.bool)}
    weights = {"a": WEIGHT, "b": torch.tensor([[1.0, -2.0], [3.0, 0.5]])}
    move = prune(magnitude, allocation=allocator("uniform"))
    after = move.apply(context(masks, weights=weights, sparsity=0.5))
    assert after.targets == {"a": 3, "b": 2}
    assert after.masks["a"].tolist() == [[True, False, False], [True, True, False]]
    assert after.masks["b"].tolist() == [[False, True], [True, False]]


def test_prune_never_grows() -> None:
    masks = {"a": torch.tensor([[True, False, False, False]]), "b": torch.ones(1, 4, dtype=torch.bool)}
    move = prune(magnitude, allocation=allocator("uniform"))
    # 4 of 8 are wanted and uniform gives 2 and 2, but a has one only.
    after = move.apply(context(masks, sparsity=0.5))
    assert after.targets == {"a": 1, "b": 3}
    assert not (after.masks["a"] & ~masks["a"]).any()
    # Less sparsity than there is changes nothing.
    assert move.apply(context(masks, sparsity=0.0)).masks["b"].all()
    assert move.apply(context(masks, sparsity=0.0)).targets == {"a": 1, "b": 4}


def test_prune_at_random_is_exact_and_depends_on_seed_and_layer() -> None:
    masks = {name: torch.ones(20, 20, dtype=torch.bool) for name in "ab"}
    move = prune(random, allocation=allocator("uniform"))
    first, again, other = (move.apply(context(masks, sparsity=0.9, seed=seed)) for seed in (0, 0, 1))
    assert first.targets == {"a": 40, "b": 40}
    assert {name: first.nnz(name) for name in "ab"} == {"a": 40, "b": 40}
    assert torch.equal(first.masks["a"], again.masks["a"])
    assert not torch.equal(first.masks["a"], other.masks["a"])
    assert not torch.equal(first.masks["a"], first.masks["b"])


def test_every_allocation_by_name() -> None:
    masks = {"a": torch.ones(4, 8, dtype=torch.bool), "b": torch.ones(8, 16, dtype=torch.bool)}
    gradients = {"a": torch.full((4, 8), 2.0), "b": torch.full((8, 16), -1.0)}

    def counts(**keywords: str) -> tuple[int, ...]:
        move = prune(magnitude, allocation=allocator(**keywords))
        assert ("grad" in move.needs) == (keywords["name"] == "sensitivity")
        return tuple(move.apply(context(masks, gradients=gradients, sparsity=0.5)).targets.values())

    assert counts(name="uniform") == (16, 64)
    assert counts(name="uniform_first_dense") == (32, 48)
    assert counts(name="er") == counts(name="erk") == (27, 53)  # 80 · 12/36 = 26.67
    # rms 2 : 1, so c (32/2 + 128/1) = 80, c = 5/9: 8.89 and 71.11 inactive
    assert counts(name="sensitivity") == (32 - 9, 128 - 71)
    # l2: 2 √32 : √128 = 1, so both at half
    assert counts(name="sensitivity", sensitivity_norm="l2") == (16, 64)


@pytest.mark.parametrize(("name", "expected"), [("global_magnitude", (1, 3)), ("lamp", (2, 2))])
def test_a_random_prune_allocates_by_magnitude(name: AllocationName, expected: tuple[int, int]) -> None:
    # Ranked: 9, 6, 5, 4.5. LAMP: 1 and 1 of the largest, then 3.5² / 32.5 = .377 and 6² / 117 = .308.
    masks = {"a": torch.ones(1, 3, dtype=torch.bool), "b": torch.ones(1, 4, dtype=torch.bool)}
    weights = {"a": torch.tensor([[-4.5, 3.5, 1.0]]), "b": torch.tensor([[5.0, -6.0, 4.0, 9.0]])}
    for seed in range(5):
        move = prune(random, allocation=allocator(name))
        after = move.apply(context(masks, weights=weights, sparsity=3 / 7, seed=seed))
        assert tuple(after.targets.values()) == expected


def test_random_growth_is_uniform_over_what_was_not_kept() -> None:
    kept = torch.tensor([[True, False, False, False, False]])
    hits = torch.zeros(1, 5)
    for seed in range(2000):
        after = grow(random).apply(context({"w": kept}, targets={"w": 2}, seed=seed))
        hits += after.masks["w"]
    assert hits[0, 0] == 2000
    assert hits[0, 1:].min() > 420  # 500 ± 19
    assert hits[0, 1:].max() < 580


def test_drop_and_grow_draw_different_random_numbers() -> None:
    masks = {"w": torch.arange(100).reshape(10, 10) % 2 == 0}
    bits = {
        purpose: context(masks).signals("w", purpose).random_bits((10, 10)) for purpose in ("drop", "grow")
    }
    assert (bits["drop"] != bits["grow"]).all()


def test_run_hands_each_topology_to_the_next_move_and_keeps_the_start_in_sight() -> None:
    seen = []

    def apply(context: Context) -> Topology:
        seen.append((context.topology.nnz("w"), context.before.nnz("w")))
        return context.topology

    moves = (Move("look", apply), drop(magnitude, constant(0.5)), Move("look", apply))
    start = rigl_context()
    assert run(moves, start).nnz("w") == 2
    assert seen == [(4, 4), (2, 4)]
    assert start.topology.nnz("w") == 4


def test_needs_are_the_criterions_and_the_allocations() -> None:
    signed = Criterion("signed", lambda signals: signals.weight, frozenset({"grad_abs"}))
    assert drop(signed, constant(0.1)).needs == {"grad_abs"}
    assert grow(gradient).needs == {"grad_abs"}
    assert grow(random).needs == frozenset()
    assert prune(signed, allocation=allocator("sensitivity")).needs == {"grad", "grad_abs"}


def test_topology_counts() -> None:
    topology = Topology({"a": ACTIVE, "b": torch.ones(1, 4, dtype=torch.bool)}, {"a": 4, "b": 4})
    assert topology.num_weights == 10
    assert topology.sparsity == pytest.approx(0.2)
    assert topology.density == {"a": pytest.approx(2 / 3), "b": 1.0}


TWO = {"a": torch.arange(40).reshape(4, 10) % 3 == 0, "b": torch.arange(50).reshape(5, 10) % 2 == 0}


@pytest.mark.parametrize(
    "moves",
    [
        (drop(magnitude, constant(0.5)), grow(random)),
        (drop(magnitude, constant(0.5), scope="global"), grow(random)),
        (prune(magnitude, allocation=allocator("uniform")), drop(magnitude, constant(0.5)), grow(random)),
        (
            drop(magnitude, constant(0.5)),
            redistribute("none", lambda *_: 1.0, frozenset()),
            grow(random, exclude_dropped=True),
        ),
        (),
    ],
)
def test_layer_by_layer_is_the_same_as_all_together(moves: tuple[Move, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(mask.shape, generator=generator) for name, mask in TWO.items()}
    start = context(TWO, weights=weights, sparsity=0.7)
    together, layers = run(moves, start), [by_layer(moves, start)(name) for name in TWO]
    assert [list(layer.masks) for layer in layers] == [["a"], ["b"]]
    for layer in layers:
        for name, mask in layer.masks.items():
            assert torch.equal(mask, together.masks[name])
            assert layer.targets == {name: together.targets[name]}


def test_only_one_layers_scores_exist_at_a_time() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def score(signals: Signals) -> Tensor:
        nonlocal most
        value = signals.weight.abs()
        alive.append(weakref.ref(value))
        most = max(most, sum(reference() is not None for reference in alive))
        return value

    tracked = Criterion("tracked", score)
    masks = dict.fromkeys("abcdef", TWO["a"])
    for moves in (
        (drop(tracked, constant(0.5)), grow(tracked)),
        (drop(tracked, constant(0.5), scope="global"), grow(tracked)),
        (
            prune(tracked, allocation=allocator("global_magnitude")),
            drop(tracked, constant(0.5)),
            grow(tracked),
        ),
    ):
        topology_of = by_layer(moves, context(masks, sparsity=0.8))
        for name in masks:
            topology_of(name)
    assert len(alive) > 20
    assert most <= 2  # the next is made before a loop's name lets go of the last


def test_magnitude_of_a_gradient_is_made_when_read() -> None:
    weight, grad = torch.zeros(1, 2), torch.tensor([[-2.0, 1.0]])
    signals = Signals(weight, 0, grad=grad)
    assert signals.grad_abs.tolist() == [[2.0, 1.0]]
    assert signals.grad_abs is not signals.grad_abs
    assert Signals(weight, 0).grad_abs is None
    summed = torch.tensor([[5.0, 6.0]])
    assert Signals(weight, 0, grad=grad, grad_abs=summed).grad_abs is summed


@pytest.mark.parametrize(
    "by",
    [
        magnitude,
        random,
        gradient,
        momentum,
        saliency,
        gradient_flow,
        synaptic_flow,
        magnitude_and_gradient(0.3),
        Criterion("relative", lambda signals: signals.weight / signals.weight.sum()),
        Criterion("ties", lambda signals: signals.weight.sign(), random_ties=True, elementwise=True),
    ],
    ids=lambda by: by.name,
)
@pytest.mark.parametrize("structure", [Structure(), Structure(tile=(2, 2))])
@pytest.mark.parametrize("transposed", [False, True])
def test_scores_of_some_units_are_those_of_all(by: Criterion, structure: Structure, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Tensor:
        values = torch.randn(6, 5, generator=generator)
        return values.t() if transposed else values

    signals = Signals(drawn(), 7, grad=drawn(), grad_ema=drawn(), hessian_grad=drawn(), flow=drawn())
    whole = by.of_units(signals, structure).reshape(-1)
    scores = by.scores(signals, structure)
    index = torch.tensor([0, 3, len(whole) - 1])
    assert torch.equal(scores(slice(2, 5)), whole[2:5])
    assert torch.equal(scores(index), whole[index])


def test_a_prune_cuts_a_layer_at_a_time() -> None:
    move = prune(magnitude, allocation=allocator("global_magnitude"))
    weights = {name: torch.arange(mask.numel() * 1.0).reshape(mask.shape) for name, mask in TWO.items()}
    allocated, cut = move.parts
    planned = allocated.apply(context(TWO, weights=weights, sparsity=0.8))
    assert planned.masks is TWO
    assert sum(planned.requested.values()) == num_active(sum(m.numel() for m in TWO.values()), 0.8)
    assert (allocated.local, cut.local, move.local) == (False, True, False)
