"""Rounds of pruning and rewinding, and runs that start from another run's ticket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parts import equal, tiny, trained
from torch import nn

from distsparse.core import Sparsifier, load_network
from distsparse.methods import imp
from distsparse.train import check, checkpoint
from distsparse.train.build import build_method, build_model
from distsparse.train.rewind import Plan, Rewinder

IMP: dict[str, Any] = {"method": {"name": "imp", "sparsity": 0.7, "prune_fraction": 0.5}}


class TestPlan:
    """Rounds of 6 steps in 3 epochs; later rounds begin at step 2, their second epoch."""

    plan = Plan(steps_per_epoch=2, steps_per_round=6, rounds=3, rewind_step=2)

    def test_steps(self) -> None:
        assert self.plan.total_steps == 6 + 4 + 4
        assert [self.plan.at(step) for step in (0, 5, 6, 9, 10, 13)] == [
            (0, 0), (0, 5), (1, 2), (1, 5), (2, 2), (2, 5),
        ]  # fmt: skip
        assert [step for step in range(1, 15) if self.plan.ends_round(step)] == [6, 10, 14]

    def test_every_round_has_its_own_epochs(self) -> None:
        assert [self.plan.epoch(step) for step in (0, 1, 2, 5, 6, 9, 10)] == [
            (0, 0), (0, 1), (1, 0), (2, 1), (4, 0), (5, 1), (7, 0),
        ]  # fmt: skip

    def test_one_round_is_a_plain_run(self) -> None:
        plan = Plan(steps_per_epoch=5, steps_per_round=10)
        assert plan.total_steps == 10
        assert [plan.epoch(step) for step in range(10)] == [divmod(step, 5) for step in range(10)]

    def test_of_a_method(self) -> None:
        # log(0.2) / log(0.8) = 7.2: 8 prunes; 0.57 · 100 is 56.99… in binary.
        plan = Plan.of(imp(sparsity=0.8, rewind_to=0.57), steps_per_epoch=50, epochs=2)
        assert (plan.rounds, plan.steps_per_round, plan.rewind_step) == (9, 100, 57)


def test_sparsity_of_rounds_is_that_of_the_paper() -> None:
    # 20 % of the remaining per round: 80, 64, 51.2, 40.96 % remain (arXiv:1803.03635, section 2).
    method = imp(sparsity=0.6)
    remaining = [1 - method.sparsity_of_round(k) for k in range(method.rounds)]
    assert remaining == pytest.approx([1, 0.8, 0.64, 0.512, 0.4096, 0.4])
    assert imp(sparsity=0.36).rounds == 3
    assert imp(sparsity=0.0).rounds == 1


def test_prunes_trained_weights_and_goes_back_to_early_ones() -> None:
    """By hand: weights 4, 3, 2, 1 after step k = 1 become 1, 2, 3, 4 by training; the last two stay."""
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    method = imp(sparsity=0.5, prune_fraction=0.5, rewind_to=0.5)
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=3, seed=0)
    sparsifier.initialize()
    plan = Plan.of(method, steps_per_epoch=2, epochs=1)
    rewinder = Rewinder(sparsifier, model, schedule, plan, fresh=dict)
    rewinder.step(0)

    def step(weights: list[float]) -> None:
        model.weight.grad = torch.ones_like(model.weight)
        sparsifier.step()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.weight.copy_(torch.tensor([weights]))

    step([4.0, 3.0, 2.0, 1.0])
    assert rewinder.step(1) is None
    step([1.0, 2.0, 3.0, 4.0])
    event = rewinder.step(2)
    assert event is not None
    assert (event.num_dropped, event.step) == (2, 2)
    assert model.weight.tolist() == [[0, 0, 2, 1]]
    assert not optimizer.state
    assert schedule.get_last_lr() == [0.5]  # of step k, not 0.25
    assert rewinder.step(3) is None


def test_a_run_of_rounds(tmp_path: Path) -> None:
    """Rounds of 24 steps at sparsities 0, 0.5, 0.7; the rate falls anew in each."""
    config = tiny({**IMP, "train.log_every": 1})
    network, masks, history = trained(config, tmp_path)
    assert history.summary["steps"] == 72
    assert history.summary["epochs"] == 6
    assert [row["sparsity"] for row in history.steps[::24]] == pytest.approx([0, 0.5, 0.7], abs=0.002)
    assert {row["step"] for row in history.rewires} == {0, 24, 48}
    rates = [row["learning_rate"] for row in history.steps]
    assert rates[:24] == rates[24:48] == rates[48:]
    assert all(bool((network[name].reshape(mask.shape)[~mask] == 0).all()) for name, mask in masks.items())


def rewound(folder: Path) -> dict[str, torch.Tensor]:
    network: dict[str, torch.Tensor] = checkpoint.load_state(folder)["rewinder"]["network"]
    return network


def test_rewinds_to_the_initialization_by_default(tmp_path: Path) -> None:
    config = tiny(IMP)
    trained(config, tmp_path)
    initial = build_model(config, check(config)).state_dict()
    assert equal(rewound(tmp_path / "step-0000000072"), initial)


def controlled(control: str, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights at the beginning of the last round, after 1 step without a learning rate, and its masks."""
    config = tiny({**IMP, "method.control": control, "checkpoint": {"every_steps": 48, "keep": 2}})
    trained(config, folder)
    return load_network(folder / "step-0000000048")


def test_controls_change_one_thing_each(tmp_path: Path) -> None:
    plain, masks = controlled("none", tmp_path / "none")
    other, other_masks = controlled("reinit", tmp_path / "reinit")
    shuffled, shuffled_masks = controlled("shuffle", tmp_path / "shuffle")
    assert equal(masks, other_masks)
    for name, mask in masks.items():
        assert int(shuffled_masks[name].sum()) == int(mask.sum())
        assert not torch.equal(shuffled_masks[name], mask)
        assert not torch.equal(other[name], plain[name])
        both = mask & shuffled_masks[name]
        assert torch.equal(shuffled[name][both], plain[name][both])


class TestLottery:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        trained(tiny(), tmp_path / "source")
        return tmp_path / "source"

    def first(self, source: Path, folder: Path, **keywords: Any) -> tuple[Any, Any]:
        """Weights and masks before the first step."""
        config = tiny({"method": {"name": "lottery", "source": str(source), **keywords}, "seed": 7})
        from distsparse.train.setup import prepare

        run = prepare(config, check(config), world_size=1)
        run.sparsifier.initialize()
        return run.bare_model.state_dict(), run.sparsifier.topology.masks

    def masked(self, network: Any, masks: Any) -> dict[str, torch.Tensor]:
        return {name: value * masks[name] if name in masks else value for name, value in network.items()}

    def test_initial_weights_and_topology_of_the_other_run(self, source: Path, tmp_path: Path) -> None:
        network, masks = self.first(source, tmp_path)
        other = tiny()
        _, final = load_network(source / "step-0000000024")
        assert equal(masks, final)
        assert equal(network, self.masked(build_model(other, check(other)).state_dict(), final))

    def test_trained_weights(self, source: Path, tmp_path: Path) -> None:
        network, _ = self.first(source, tmp_path, start="trained")
        assert equal(network, load_network(source / "step-0000000024")[0])

    def test_random_weights_are_those_of_the_own_seed(self, source: Path, tmp_path: Path) -> None:
        network, masks = self.first(source, tmp_path, start="random")
        own = tiny({"seed": 7})
        assert equal(network, self.masked(build_model(own, check(own)).state_dict(), masks))

    def test_shuffled_masks_keep_every_layers_count(self, source: Path, tmp_path: Path) -> None:
        _, masks = self.first(source, tmp_path, shuffle_masks=True)
        _, final = load_network(source / "step-0000000024")
        for name, mask in masks.items():
            assert int(mask.sum()) == int(final[name].sum())
            assert not torch.equal(mask, final[name])

    def test_of_a_rewound_run_starts_where_that_was_rewound_to(self, tmp_path: Path) -> None:
        trained(tiny({**IMP, "method.rewind_to": 0.25}), tmp_path / "imp")
        network, masks = self.first(tmp_path / "imp", tmp_path)
        saved = rewound(next((tmp_path / "imp").glob("step-*")))
        assert equal(network, self.masked(saved, masks))

    def test_ticket_of_a_ticket(self, source: Path, tmp_path: Path) -> None:
        config = tiny({"method": {"name": "lottery", "source": str(source)}, "seed": 3})
        trained(config, tmp_path / "second")
        assert equal(self.first(tmp_path / "second", tmp_path)[0], self.first(source, tmp_path)[0])

    def test_topology_never_changes(self, source: Path, tmp_path: Path) -> None:
        config = tiny({"method": {"name": "lottery", "source": str(source)}})
        _, masks, history = trained(config, tmp_path / "run")
        assert equal(masks, load_network(source / "step-0000000024")[1])
        assert history.summary["num_updates"] == 0
        assert build_method(config).sparsity(0.5) == pytest.approx(0.7, abs=0.01)

    def test_bad_sources(self, source: Path, tmp_path: Path) -> None:
        def refused(path: Path, **changes: Any) -> None:
            check(tiny({"method": {"name": "lottery", "source": str(path)}, **changes}))

        with pytest.raises(ValueError, match=r"method\.source = .*must be a trial's folder of checkpoints"):
            refused(tmp_path / "nowhere")
        with pytest.raises(ValueError, match=r"is of another model"):
            refused(source, **{"model.hidden": [17]})
        with pytest.raises(ValueError, match=r"method\.source: is required"):
            tiny({"method": {"name": "lottery"}})
        (source / "step-0000000024" / "network.safetensors").write_bytes(b"x")
        with pytest.raises(ValueError, match=r"cannot be read"):
            refused(source)
