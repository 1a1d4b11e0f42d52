"""What the methods' papers say happens in an update, by hand."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distsparse.core import (
    Context,
    Method,
    Signals,
    Sparsifier,
    Topology,
    ablate,
    gradient,
    grow,
    redistribute,
    refill,
)
from distsparse.core.moves import run
from distsparse.methods import acdc, dsr, gmp, granet, methods, progressive, snfs, srigl
from distsparse.ops import counter_rng
from distsparse.ops.structure import Structure


def context(
    masks: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    before: Mapping[str, Tensor] | None = None,
    structure: Structure = Structure(),  # noqa: B008  frozen
    allowed: Mapping[str, Tensor] | None = None,
    requested: Mapping[str, int] | None = None,
    **signals: Mapping[str, Tensor],
) -> Context:
    def of(name: str, purpose: str) -> Signals:
        key = counter_rng.key(0, 1, name, purpose)
        return Signals(weights[name], key, **{kind: values[name] for kind, values in signals.items()})

    start = dict(before or masks)
    targets = {name: int(mask.sum()) for name, mask in start.items()}
    rest = (targets, allowed or {}, requested or {})
    shapes = {name: tuple(mask.shape) for name, mask in start.items()}
    return Context(Topology(masks, *rest), Topology(start, *rest), shapes, of, 0.0, 0.5, structure)


def flags(*rows: str) -> Tensor:
    return torch.tensor([[character == "x" for character in row] for row in rows])


def test_snfs_moves_weights_to_the_layers_of_large_momentum() -> None:
    """Mean |momentum| of the active weights before the drop: .25 and .75, so of 4 vacancies 1 and 3."""
    masks = {"a": flags("xxxx.."), "b": flags("xxxx..")}
    weights = {
        "a": torch.tensor([[1.0, -2.0, 3.0, 4.0, 0.0, 0.0]]),
        "b": torch.tensor([[1.0, 2.0, -3.0, 4.0, 0.0, 0.0]]),
    }
    momentum = {
        "a": torch.tensor([[-0.8, 0.0, 0.1, 0.1, 0.7, -0.75]]),
        "b": torch.tensor([[1.5, -1.5, 0.0, 0.0, -0.3, 0.2]]),
    }
    after = run(snfs(alpha=0.5).update, context(masks, weights, grad_ema=momentum))
    assert after.targets == {"a": 3, "b": 5}
    # a keeps 3 and 4 and gets back the first (.8); b keeps -3 and 4 and grows 1.5, 1.5 and .3.
    assert torch.equal(after.masks["a"], flags("x.xx.."))
    assert torch.equal(after.masks["b"], flags("xxxxx."))


def test_snfs_gives_what_a_full_layer_cannot_take_to_the_others() -> None:
    masks = {"a": flags("xxxx"), "b": flags("xxxx..")}
    weights = {"a": torch.ones(1, 4), "b": torch.ones(1, 6)}
    momentum = {"a": torch.ones(1, 4), "b": torch.zeros(1, 6)}
    after = run(snfs(alpha=0.5).update, context(masks, weights, grad_ema=momentum))
    assert after.targets == {"a": 4, "b": 4}


def test_dsr_has_one_threshold_and_follows_the_survivors() -> None:
    # The 2 smallest of all 8 are both in a, which keeps 2 against 4: 2 · 2/6 = .67 and 1.33, so one each.
    masks = {"a": flags("xxxx..."), "b": flags("xxxx...")}
    weights = {
        name: torch.tensor([values + [0.0] * 3])
        for name, values in {"a": [1.0, -2.0, 3.0, 10.0], "b": [4.0, 5.0, -6.0, 7.0]}.items()
    }
    after = run(dsr(alpha=0.25).update, context(masks, weights))
    assert after.targets == {"a": 3, "b": 5}
    assert after.masks["a"][0, :4].tolist() == [False, False, True, True]
    assert after.masks["b"][0, :4].all()
    assert {name: after.nnz(name) for name in masks} == {"a": 3, "b": 5}


def test_dsr_never_leaves_a_layer_empty() -> None:
    masks = {"a": flags("xx."), "b": flags("xxxxxx..")}
    weights = {"a": torch.full((1, 3), 0.1), "b": torch.ones(1, 8)}
    after = run(dsr(alpha=0.5).update, context(masks, weights))
    # 4 of 8 go: both of a, so that a has no survivors and no share.
    assert after.targets == {"a": 1, "b": 7}


def counts(method: Method, *, steps: int = 100, features: int = 100) -> dict[int, int]:
    """Active weights after every update of a 10 × ``features`` layer."""
    torch.manual_seed(0)
    model = nn.Linear(features, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=steps, seed=0)
    events = [sparsifier.initialize()]
    for _step in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, features)).square().sum().backward()
        if event := sparsifier.step():
            events.append(event)
        optimizer.step()
    assert int((model.weight != 0).sum()) == events[-1].layers[0].nnz
    return {event.step: event.layers[0].nnz for event in events}


def test_gmp_is_cubic_and_ends_exactly() -> None:
    # .9 (1 - (1 - p)³) of 1000 at p = .2, .4, …: 439.2, 705.6, 842.4, 892.8, 900 inactive
    expected = {0: 1000, 10: 561, 20: 294, 30: 158, 40: 107, 50: 100}
    assert counts(gmp(delta_T=10, T_end=0.5)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # phases of 10 steps from step 10 on; 1000 weights, 900 of them inactive when compressed
        ({"T_end": 0.75}, {10: 100, 20: 1000, 30: 100, 40: 1000, 50: 100, 60: 1000, 70: 100}),
        # 50 would be the turn of a decompression, but is the last update
        ({"T_start": 0.15, "T_end": 0.55}, {20: 100, 30: 1000, 40: 100, 50: 100}),
        ({"T_start": 0.2, "T_end": 0.5}, {20: 100, 30: 1000, 40: 100, 50: 100}),
        ({"T_start": 0.0, "T_end": 0.2}, {10: 100, 20: 100}),
        ({"T_start": 0.75, "T_end": 1.0}, {80: 100, 90: 100}),
    ],
)
def test_acdc_alternates_and_ends_compressed(values: dict[str, Any], expected: dict[int, int]) -> None:
    assert counts(acdc(delta_T=10, **values)) == {0: 1000} | expected


def test_acdc_compresses_to_the_largest_weights_of_all_layers_and_comes_back_at_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, -0.9, 0.2]]))
        model[1].weight.copy_(torch.tensor([[0.3], [-0.8]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = acdc(sparsity=0.6, delta_T=1, T_start=0.0, T_end=1.0)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=4, seed=0)
    sparsifier.initialize()
    first = [("0.weight", flags(".x.")), ("1.weight", flags(".", "x"))]
    for step in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        event = sparsifier.step()
        momenta = [optimizer.state[layer.weight].get("momentum_buffer") for layer in model]
        if step == 1:
            for name, mask in first:
                assert torch.equal(sparsifier.topology.masks[name], mask)
        if step == 2:
            assert event is not None
            assert (event.num_grown, event.num_dropped) == (3, 0)
            assert sparsifier.topology.targets == {"0.weight": 3, "1.weight": 2}
            for layer, momentum, (_, mask) in zip(model, momenta, first, strict=True):
                for tensor in (layer.weight.detach(), momentum):
                    assert torch.equal(tensor != 0, mask)
        optimizer.step()
    for layer, (_, mask) in zip(model, first, strict=True):
        assert torch.equal(layer.weight != 0, mask)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert all((layer.weight != 0).all() for layer in model)


def test_refill_splits_what_is_added_in_proportion_to_the_room() -> None:
    masks = {"a": flags("x....."), "b": flags("xx..", "xxx.")}
    after = run((refill(),), context(masks, {name: mask.float() for name, mask in masks.items()}))
    # Half of 14 is 7, and 6 are active: one more, of shares 5 / 8 and 3 / 8.
    assert after.targets == {"a": 2, "b": 5}
    assert torch.equal(after.masks["a"], flags("xx...."))
    full = replace(context(masks, {}), sparsity=0.0)
    assert all(mask.all() for mask in run((refill(),), full).masks.values())
    assert run((refill(),), replace(full, sparsity=0.9)) is full.topology


@pytest.mark.parametrize(
    "values", [{"T_end": 1.0}, {"T_end": 0.57}, {"T_start": 0.5, "T_end": 0.59}, {"T_start": 0.33}]
)
@pytest.mark.parametrize("name", ["gmp", "progressive", "granet"])
def test_the_last_update_has_the_final_sparsity(name: str, values: dict[str, Any]) -> None:
    """Also where no update falls on T_end, or T_end is the end of the run, past its last step."""
    known = methods.get(name).schema.model_fields
    method = methods.get(name).factory(
        delta_T=10, **{key: value for key, value in values.items() if key in known}
    )
    assert list(counts(method).values())[-1] == 100


def test_gmp_starts_where_it_should() -> None:
    # p = (t - 20) / 40: 0 at step 20, so that s = s_i; .5 at 40: .8 - .6 / 8 = .725.
    found = counts(gmp(sparsity=0.8, initial_sparsity=0.2, delta_T=20, T_start=0.2, T_end=0.6))
    assert found == {0: 1000, 20: 800, 40: 275, 60: 200}


def test_progressive_is_a_percentile_of_all_weights() -> None:
    # Linear to 80 %: 160, 320, … of 1000; of the *active* ones it would be 840, 571, …
    assert counts(progressive(sparsity=0.8, delta_T=20, T_end=1.0)) == {
        0: 1000,
        20: 800,
        40: 600,
        60: 400,
        80: 200,
    }


def test_granet_keeps_the_cubic_sparsity_while_it_exchanges() -> None:
    # .9 - .4 (1 - p)³ at p = 1/3, 2/3, 1: .78148, .88519, .9
    assert counts(granet(delta_T=20, T_end=0.6)) == {0: 500, 20: 219, 40: 115, 60: 100}


KEPT = flags("xx..", "xx..", "x...", "....")
BEFORE = flags("xx..", "xx..", "xx..", "xx..")
# Three vacancies: their best candidates are one in the first row, one in the second and one in the last.
GRADIENT = torch.tensor([[0.0, 0, 5, 0], [0, 0, 6, 0], [0, 0, 0, 1], [7, 0, 0, 0]])
ROWS = Structure(group="row")


def rows_after(gamma: float, names: str = "az", protect_outputs: bool = True) -> Topology:
    masks, before, grads = (dict.fromkeys(names, of) for of in (KEPT, BEFORE, GRADIENT))
    start = context(
        masks, {n: torch.ones(4, 4) for n in names}, before=before, structure=ROWS, grad_abs=grads
    )
    return run((ablate(gradient, gamma=gamma, protect_outputs=protect_outputs), grow(gradient)), start)


@pytest.mark.parametrize(
    ("gamma", "fan_in"),
    [
        (0.0, [2, 2, 2, 2]),
        (0.5, [2, 2, 2, 2]),  # salient 3, 3, 1, 1; a fan-in of 2 asks for 1
        (0.6, [4, 4, 0, 0]),  # for 1.2
        (1.0, [4, 4, 0, 0]),
    ],
)
def test_srigl_closes_neurons_with_few_salient_weights(gamma: float, fan_in: list[int]) -> None:
    after = rows_after(gamma)
    assert after.masks["a"].sum(1).tolist() == fan_in
    assert after.targets == {"a": 8, "z": 8}
    # The last layer keeps its neurons.
    assert after.masks["z"].sum(1).tolist() == [2, 2, 2, 2]
    assert "z" not in after.allowed
    assert rows_after(gamma, protect_outputs=False).masks["z"].sum(1).tolist() == fan_in


def test_srigl_keeps_one_neuron_open() -> None:
    masks, before = (
        {"a": flags("....", "x..."), "z": flags("x")},
        {"a": flags("xx..", "xx.."), "z": flags("x")},
    )
    grads = {"a": torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 0]]), "z": torch.ones(1, 1)}
    start = context(
        masks, {"a": torch.ones(2, 4), "z": torch.ones(1, 1)}, before=before, structure=ROWS, grad_abs=grads
    )
    # Salient: 3 and 1, of a fan-in that would have to be 4.
    after = run((ablate(gradient, gamma=2.0), grow(gradient)), start)
    assert after.masks["a"].sum(1).tolist() == [4, 0]


def test_srigl_opens_a_neuron_again() -> None:
    before = {"a": flags("xxxx..", "xxxx..", "......", "......"), "z": flags("x")}
    masks = {"a": flags("xx....", "..xx..", "......", "......"), "z": flags("x")}
    grads = {"a": torch.zeros(4, 6), "z": torch.ones(1, 1)}
    grads["a"][2, :4] = torch.tensor([4.0, 3, 2, 1])
    grads["a"][0, 5] = grads["a"][1, 5] = 0.5
    start = context(
        masks,
        {"a": torch.ones(4, 6), "z": torch.ones(1, 1)},
        before=before,
        structure=ROWS,
        allowed={"a": flags("x", "x", ".", ".")},
        requested={"a": 8, "z": 1},
        grad_abs=grads,
    )
    # Salient 2, 2, 4, 0 of a fan-in of 4; 8 / 3 rounds to 3.
    after = run((ablate(gradient, gamma=0.5), grow(gradient)), start)
    assert torch.equal(after.allowed["a"], flags("x", "x", "x", "."))
    assert torch.equal(after.masks["a"], flags("xx...x", "..xx.x", "xxx...", "......"))
    assert (after.targets["a"], after.requested["a"]) == (9, 8)


def test_srigl_fan_in_does_not_drift_with_its_rounding() -> None:
    """9 active where 8 were requested; when one neuron is left it has 8, not 9."""
    before = {"a": flags("xxx.......", "xxx.......", "xxx......."), "z": flags("x")}
    masks = {"a": flags("xxx.......", "..........", ".........."), "z": flags("x")}
    grads = {"a": torch.zeros(3, 10), "z": torch.ones(1, 1)}
    grads["a"][0] = 1
    start = context(
        masks,
        {"a": torch.ones(3, 10), "z": torch.ones(1, 1)},
        before=before,
        structure=ROWS,
        requested={"a": 8, "z": 1},
        grad_abs=grads,
    )
    after = run((ablate(gradient, gamma=0.5), grow(gradient)), start)
    assert after.masks["a"].sum(1).tolist() == [8, 0, 0]


def srigl_run(gamma: float, steps: int = 60, interrupted: int | None = None) -> tuple[Sparsifier, list[int]]:
    """Return the sparsifier and the open neurons of the first layer after each step."""

    def parts(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Sparsifier]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 12), nn.ReLU(), nn.Linear(12, 5))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = srigl(
            sparsity=0.8,
            delta_T=3,
            gamma=gamma,
            alpha=0.5,
            alpha_schedule="constant",
            T_end=1.0,
            allocation="uniform",
        )
        return model, optimizer, Sparsifier.attach(method, model, optimizer, total_steps=steps, seed=0)

    model, optimizer, sparsifier = parts(0)
    sparsifier.initialize()
    open_: list[int] = []
    for step in range(steps):
        if step == interrupted:
            states = [part.state_dict() for part in (model, optimizer, sparsifier)]
            model, optimizer, sparsifier = parts(1)
            for part, state in zip((model, optimizer, sparsifier), states, strict=True):
                part.load_state_dict(state)
        optimizer.zero_grad()
        inputs = torch.randn(16, 20, generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(inputs), (inputs[:, :5]).argmax(1)).backward()
        event = sparsifier.step()
        if not event:
            optimizer.step()
        for name, mask in sparsifier.topology.masks.items():
            fan_in = mask.sum(1)
            assert len(fan_in[fan_in > 0].unique()) == 1
            rows = sparsifier.topology.allowed.get(name)
            assert (fan_in > 0).all() if rows is None else torch.equal(fan_in > 0, rows.squeeze(1))
        open_.append(int(sparsifier.topology.masks["0.weight"].any(1).sum()))
        assert sparsifier.topology.masks["4.weight"].any(1).all()
    return sparsifier, open_


def test_srigl_ablates_and_revives_in_a_run() -> None:
    assert set(srigl_run(gamma=0.0)[1]) == {30}
    open_ = srigl_run(gamma=0.6)[1]
    assert min(open_) < 30
    assert any(later > earlier for earlier, later in itertools.pairwise(open_)), "none came back"


@pytest.mark.parametrize("interrupted", [10, 29])
def test_srigl_resumes_with_its_closed_neurons(interrupted: int) -> None:
    whole, open_ = srigl_run(gamma=0.6)
    assert open_[interrupted - 1] < 30
    resumed, again = srigl_run(gamma=0.6, interrupted=interrupted)
    assert again == open_
    for name in whole.topology.masks:
        assert torch.equal(whole.topology.masks[name], resumed.topology.masks[name])
        first, second = (s.weights[name].parameter for s in (whole, resumed))
        assert torch.equal(first, second)
    assert whole.topology.requested == resumed.topology.requested != {}


def test_a_run_too_short_for_an_update_is_refused_where_the_sparsity_would_not_be_reached() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for method in (gmp(delta_T=100), granet(delta_T=100), progressive(T_start=0.95, delta_T=10)):
        with pytest.raises(ValueError, match=r"delta_T = 10.*sparsity 0\.9 would never be reached"):
            Sparsifier.attach(method, model, optimizer, total_steps=100, seed=0)
    Sparsifier.attach(srigl(delta_T=100), model, optimizer, total_steps=100, seed=0)


def test_vacancies_move_between_layers_of_constant_fan_in() -> None:
    before = {name: flags("xx..", "xx..") for name in "ab"}
    masks = {"a": flags("xx..", ".x.."), "b": flags("x...", "x...")}
    weights = {"a": torch.tensor([[1.0, 2.0, 0, 0], [0, 3.0, 0, 0]]), "b": torch.ones(2, 4)}

    def to_b(signals: Signals, active: Tensor, kept: Tensor) -> float:
        return float(signals.weight.sum() == 8)

    move = redistribute("to b", to_b, frozenset())
    start = context(masks, weights, before=before, structure=Structure(group="row"))
    after = move.apply(start)
    # All 3 vacancies for b: 3 and 5. Two rows hold 2 or 4, and 4 or 6: of two as near the smaller.
    assert (after.targets, after.requested) == ({"a": 2, "b": 4}, {"a": 3, "b": 5})
    # The row of a that held two gave its smaller away.
    assert torch.equal(after.masks["a"], flags(".x..", ".x.."))
    assert torch.equal(after.masks["b"], masks["b"])
    # The next one shares out 8 again, of which 2 and 2 are held: b gets 4 of them.
    again = move.apply(replace(start, topology=after))
    assert again.requested == {"a": 2, "b": 6}
    assert again.targets == {"a": 2, "b": 6}


@pytest.mark.parametrize("group", ["row", 10])
@pytest.mark.parametrize("name", ["snfs", "dsr"])
def test_rounding_to_groups_does_not_add_up_over_many_updates(name: str, group: str | int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    method = methods.get(name).factory(sparsity=0.6, delta_T=1, alpha=0.3, T_end=1.0, group=group)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=60, seed=0)
    sparsifier.initialize()
    seen = set()
    for _step in range(60):
        optimizer.zero_grad()
        model(torch.randn(16, 40)).square().mean().backward()
        sparsifier.step()
        optimizer.step()
        topology = sparsifier.topology
        groups = {n: method.structure.num_groups(mask) for n, mask in topology.masks.items()}
        assert sum(topology.requested.values()) == 760  # 40 % of 1900
        assert all(abs(topology.targets[n] - topology.requested[n]) <= groups[n] / 2 for n in groups)
        seen.add(tuple(topology.targets.values()))
    assert len(seen) >= 2


def test_snfs_and_dsr_share_by_weights_where_tiles_move() -> None:
    """Tiles of two: of a's three, the last two go; of b's, none; both vacancies follow the shares."""
    structure = Structure(tile=(1, 2))
    masks = {"a": flags("xxxxxx"), "b": flags("xxxx..")}
    weights = {"a": torch.tensor([[9.0, 9, 1, 1, 1, 1]]), "b": torch.tensor([[5.0, 5, 5, 5, 0, 0]])}
    momentum = {"a": torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.1, 0.1]]), "b": torch.full((1, 6), 0.3)}
    before = context(masks, weights, structure=structure, grad_ema=momentum)
    targets = {name: int(structure.units(mask).sum()) for name, mask in masks.items()}
    before = replace(before, topology=replace(before.topology, targets=targets))
    # DSR drops 2 of 5 by one threshold and shares 1 : 2 by survivors: .67 and 1.33.
    assert run(dsr(alpha=0.4).update, before).targets == {"a": 2, "b": 3}
    # SNFS drops 1 of 3 and 1 of 2, and shares .1 : .3.
    assert run(snfs(alpha=0.5).update, before).targets == {"a": 2, "b": 3}


@pytest.mark.parametrize("gamma", [0.3, 0.9, 1.0])
def test_srigl_loses_no_weights_to_ablation(gamma: float) -> None:
    """However many rows are closed, enough stay open for what the layer was given, but for the rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = srigl(sparsity=0.5, delta_T=2, gamma=gamma, T_end=1.0, allocation="uniform")
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=60, seed=0)
    sparsifier.initialize()
    for step in range(60):
        inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), inputs[:, :10].argmax(1)).backward()
        if not sparsifier.step():
            optimizer.step()
        for name, mask in sparsifier.topology.masks.items():
            open_ = int(mask.any(1).sum())
            assert abs(int(mask.sum()) - sparsifier.topology.requested[name]) <= open_ / 2
    assert abs(sparsifier.sparsity - 0.5) < 0.01
    closed = sum(int((~mask.any(1)).sum()) for mask in sparsifier.topology.masks.values())
    assert (closed > 0) == (gamma > 0.5)
