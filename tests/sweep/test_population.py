"""A population on disk: members that wait, copy and go on, also after the driver was killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parts import TINY, equal

from distsparse import config as configuration
from distsparse import results
from distsparse.config import RunConfig, override
from distsparse.core import load_network
from distsparse.data import Dataset
from distsparse.launch.local import run_local
from distsparse.launch.lock import TrialInUse
from distsparse.launch.record import checkpoints_of, record_failed
from distsparse.launch.run import run
from distsparse.sweep import parse_space, population
from distsparse.sweep.agenda import Agenda, Listed
from distsparse.sweep.pbt import comparisons
from distsparse.sweep.population import Population, alone, standing
from distsparse.train import History, LocalReporter, check, checkpoint, prepare
from distsparse.train.build import build_method
from distsparse.train.reporter import saved_in
from distsparse.train.setup import make_plan

SPACE = parse_space(
    {
        "study": "s",
        "search": "grid",
        "pbt": {"metric": "accuracy", "interval": 2, "grace": 0.0, "quantile": 0.5},
        "space": {"optimizer.lr": {"grid": [0.2, 0.0002, 0.1, 0.0001]}, "method.alpha": {"grid": [0.3]}},
        "base": {**TINY, "train": {**TINY["train"], "epochs": 6}},
    }
)
"""72 steps, compared after 24 and 48"""
MEMBERS = SPACE.points()
KEYS = [config.key for config in MEMBERS]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return check(SPACE.base)


def populate(root: Path, dataset: Dataset, members: Sequence[RunConfig] = MEMBERS) -> Population:
    assert SPACE.pbt is not None
    plan = make_plan(SPACE.base, dataset, build_method(SPACE.base))
    steps = comparisons(SPACE.pbt, SPACE.base, plan, SPACE.domains)
    assert list(steps) == [24, 48]
    return Population(members, SPACE.pbt, SPACE.domains, steps, root, search_seed=0)


class Part(LocalReporter):
    until: int | None = None

    def stops_after(self, step: int) -> bool:
        return step == self.until


def advance(config: RunConfig, root: Path, until: int | None, dataset: Dataset) -> None:
    reporter = Part(checkpoints_of(root, config), keep=2)
    reporter.until = until
    with suppress(KeyboardInterrupt):
        run_local(config, root, verbose=False, reporter=reporter, dataset=dataset)


def folder(root: Path, key: str) -> Path:
    return root / "s" / "checkpoints" / key


def contents(place: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in place.iterdir()}


@pytest.fixture(scope="module")
def arrived(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """Four members at the first comparison; only the driver has not heard."""
    root = tmp_path_factory.mktemp("arrived")
    for config in populate(root, dataset).begin(set()):
        advance(config, root, 24, dataset)
    return root


@pytest.fixture
def root(arrived: Path, tmp_path: Path) -> Path:
    return shutil.copytree(arrived, tmp_path / "root")


def test_members_wait_for_each_other(tmp_path: Path, dataset: Dataset, root: Path) -> None:
    found = populate(tmp_path, dataset)
    ready = found.begin(set())
    assert [config.key for config in ready] == KEYS
    assert [config.optimizer.params["lr"] for config in ready] == [0.2, 0.0002, 0.1, 0.0001]
    assert found.until() == 24
    assert found.trains
    for key in KEYS:
        (folder(tmp_path, key)).parent.mkdir(parents=True, exist_ok=True)
        folder(root, key).rename(folder(tmp_path, key))
        ready = found.ended_part(key)
        assert [config.key for config in ready] == (KEYS if key == KEYS[-1] else [])
    assert found.until() == 48
    assert not found.halted
    # The slow rates are far behind.
    assert sorted(line.split()[2] for line in found.news) == sorted([KEYS[1], KEYS[3]])


def test_a_clone_has_the_state_of_its_source(root: Path, dataset: Dataset) -> None:
    found = populate(root, dataset)
    before = {key: contents(folder(root, key) / "step-0000000024") for key in KEYS}
    assert [config.key for config in found.begin(set())] == KEYS
    ratios = []
    for key in (KEYS[1], KEYS[3]):
        _, row = found.lineage(key)
        assert row["source"] in (KEYS[0], KEYS[2])
        assert [saved.name for saved in folder(root, key).iterdir()] == ["step-0000000024"]
        saved = folder(root, key) / "step-0000000024"
        assert contents(saved) == before[row["source"]] != before[key]
        # Weights, masks, counts and optimizer state are the source's; the settings are its own.
        source = found.config(row["source"])
        own = prepare(found.config(key), dataset, world_size=1)
        theirs = prepare(source, dataset, world_size=1)
        own.restore(saved)
        theirs.restore(saved)
        assert equal(own.model.state_dict(), theirs.model.state_dict())
        assert equal(own.sparsifier.topology.masks, theirs.sparsifier.topology.masks)
        assert own.sparsifier.topology.targets == theirs.sparsifier.topology.targets
        states = [
            {str(i): values["momentum_buffer"] for i, values in enumerate(r.optimizer.state.values())}
            for r in (own, theirs)
        ]
        assert states[0]
        assert equal(*states)
        ratio = own.optimizer.param_groups[0]["lr"] / theirs.optimizer.param_groups[0]["lr"]
        rates = [c.optimizer.params["lr"] for c in (found.config(key), source)]
        assert ratio == pytest.approx(rates[0] / rates[1])
        ratios.append(ratio)
    assert set(ratios) != {1.0}
    assert contents(folder(root, KEYS[0]) / "step-0000000024") == before[KEYS[0]]


def test_a_clone_trains_on_with_exact_counts_and_zeros(root: Path, dataset: Dataset) -> None:
    found = populate(root, dataset)
    clone = {config.key: config for config in found.begin(set())}[KEYS[1]]
    advance(clone, root, None, dataset)
    (saved,) = folder(root, KEYS[1]).iterdir()
    network, masks = load_network(saved)
    targets = checkpoint.plain_values(saved)["sparsifier"]["targets"]
    for name, mask in masks.items():
        assert int(mask.sum()) == targets[name]
        weight = network[name].flatten(1)
        assert not weight[~mask].any()
        assert weight[mask].any()
    (row,) = results.read_trial(root, study="s", trial=KEYS[1]) or []
    assert (row["status"], row["steps"]) == ("completed", 72)
    assert row["optimizer.lr"] == clone.optimizer.params["lr"]
    assert row["population.member"] == 1


def test_lineage(root: Path, dataset: Dataset) -> None:
    found = populate(root, dataset)
    found.begin(set())
    for key, config in zip(KEYS, MEMBERS, strict=True):
        start, row = found.lineage(key)
        first = {"optimizer.lr": config.optimizer.params["lr"], "method.alpha": 0.3}
        assert (start["step"], json.loads(start["settings"])) == (0, first)
        assert (row["step"], row["metric"]) == (24, "accuracy")
        now = found.config(key)
        assert json.loads(row["settings"]) == {
            name: now.flat()[name] for name in ("optimizer.lr", "method.alpha")
        }
        if row["source"] is None:
            assert json.loads(row["settings"]) == first
            assert row["source_score"] is None
        else:
            assert row["source_score"] > row["score"]


def decisions(root: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((root / "s" / "populations").glob("*.json"))]


def test_driver_killed_between_the_decision_and_the_copies(
    root: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = population._take_over, 0

    def dies(*args: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise SystemExit
        return original(*args)

    monkeypatch.setattr(population, "_take_over", dies)
    with pytest.raises(SystemExit):
        populate(root, dataset).begin(set())
    decided = decisions(root)
    again = populate(root, dataset)
    assert [config.key for config in again.begin(set())] == KEYS
    assert calls == 3  # the first copy was there
    assert decisions(root) == decided
    for key in (KEYS[1], KEYS[3]):
        source = again.lineage(key)[1]["source"]
        places = [folder(root, name) / "step-0000000024" for name in (key, source)]
        assert contents(places[0]) == contents(places[1])
    # Nobody copies again who has trained on.
    (config,) = [config for config in MEMBERS if config.key == KEYS[1]]
    advance(again.config(config.key), root, 30, dataset)
    populate(root, dataset).begin(set())
    assert calls == 3
    assert standing(checkpoints_of(root, config)) is not None
    assert standing(checkpoints_of(root, config)).step == 30  # type: ignore[union-attr]


def test_checkpoints_that_are_gone_are_not_trained_over(root: Path, dataset: Dataset) -> None:
    populate(root, dataset).begin(set())
    for key in KEYS:
        shutil.rmtree(folder(root, key))
    with pytest.raises(ValueError, match="was compared at step 24, and has no readable checkpoint"):
        populate(root, dataset).begin(set())


def test_the_same_decision_whoever_arrives_first(root: Path, dataset: Dataset) -> None:
    other = shutil.copytree(root, root / "other")
    populate(root, dataset).begin(set())
    places = {key: folder(other, key).rename(folder(other, "." + key)) for key in KEYS}
    found = populate(other, dataset)
    found.begin(set())
    for key in reversed(KEYS):
        places[key].rename(folder(other, key))
        found.ended_part(key)
    assert decisions(other) == decisions(root)
    assert len(decisions(root)) == 1


def test_nobody_waits_for_a_member_that_failed(root: Path, dataset: Dataset) -> None:
    found = populate(root, dataset)
    place = folder(root, KEYS[2]).rename(folder(root, ".away"))
    assert [config.key for config in found.begin(set())] == [KEYS[2]]
    assert [config.key for config in found.left(KEYS[2])] == [KEYS[0], KEYS[1], KEYS[3]]
    # Of three, one copies one.
    assert [found.lineage(key)[1]["source"] for key in (KEYS[0], KEYS[1])] == [None, None]
    assert found.lineage(KEYS[3])[1]["source"] == KEYS[0]
    # Begun again it passes what was decided without it, and meets the others at the next one.
    place.rename(folder(root, KEYS[2]))
    again = populate(root, dataset)
    assert [config.key for config in again.begin(set())] == KEYS
    assert again.until() == 48
    assert len(again.lineage(KEYS[2])) == 1


def test_a_member_that_stopped_on_its_way(tmp_path: Path, root: Path, dataset: Dataset) -> None:
    place = folder(root, KEYS[2]).rename(tmp_path / "away")
    found = populate(root, dataset)
    found.begin(set())
    advance(MEMBERS[2], root, 20, dataset)
    assert found.ended_part(KEYS[2]) == []
    assert found.halted
    assert found.trains
    # The next sweep trains it to the comparison, and nobody else before.
    again = populate(root, dataset)
    assert [config.key for config in again.begin(set())] == [KEYS[2]]
    advance(MEMBERS[2], root, 24, dataset)
    assert [config.key for config in again.ended_part(KEYS[2])] == KEYS
    assert (
        contents(folder(root, KEYS[2]) / "step-0000000024").keys()
        == contents(place / "step-0000000024").keys()
    )


def test_a_damaged_checkpoint_is_no_arrival(root: Path, dataset: Dataset) -> None:
    (folder(root, KEYS[0]) / "step-0000000024" / "state.json").write_text("{")
    found = populate(root, dataset)
    assert [config.key for config in found.begin(set())] == [KEYS[0]]
    assert standing(checkpoints_of(root, MEMBERS[0])).step == 12  # type: ignore[union-attr]


def test_a_clone_never_falls_back_on_what_it_was(root: Path, dataset: Dataset) -> None:
    found = populate(root, dataset)
    clone = {config.key: config for config in found.begin(set())}[KEYS[1]]
    (saved,) = folder(root, KEYS[1]).iterdir()
    (saved / "state.json").write_text("{")
    advance(clone, root, 30, dataset)
    (row,) = results.read_trial(root, study="s", trial=KEYS[1]) or []
    assert row["status"] == "failed"
    assert "state.json cannot be read" in row["error"]


def test_checkpoints_on_an_object_store(tmp_path: Path, bucket: str, dataset: Dataset) -> None:
    members = [override(config, {"checkpoint.storage": bucket}) for config in MEMBERS]
    assert [config.key for config in members] == KEYS
    for config in members:
        advance(config, tmp_path, 24, dataset)
    found = populate(tmp_path, dataset, members)
    assert [config.key for config in found.begin(set())] == KEYS
    places = {config.key: checkpoints_of(tmp_path, config) for config in members}
    for config in members:
        row = found.lineage(config.key)[1]
        here = standing(places[config.key])
        assert here is not None
        whose = config if row["source"] is None else next(m for m in members if m.key == row["source"])
        assert (here.step, here.member) == (24, whose.population.member)
    sources = [found.lineage(key)[1]["source"] for key in KEYS]
    assert [source is None for source in sources] == [True, False, True, False]
    assert [len(saved_in(places[key])) for key in KEYS] == [2, 1, 2, 1]
    # A driver that comes back has nothing to copy.
    again = populate(tmp_path, dataset, members)
    again.begin(set())
    assert again.news == []


def test_one_sweep_trains_a_population(tmp_path: Path) -> None:
    with (
        alone(tmp_path, MEMBERS),
        pytest.raises(TrialInUse, match="another sweep trains population"),
        alone(tmp_path, MEMBERS),
    ):
        pass
    with alone(tmp_path, MEMBERS):
        pass


def test_agenda_of_two_populations(tmp_path: Path, dataset: Dataset) -> None:
    """One for each seed; only its own members are waited for, and all rows are counted."""
    space = replace(SPACE, seeds=(0, 1))
    agenda = Agenda(
        Listed(space.points()),
        space.seeds,
        tmp_path,
        populate=lambda members: populate(tmp_path, dataset, members),
    )
    assert len(agenda.settle()) == 8
    begun = [agenda.next() for _ in range(8)]
    assert agenda.next() is None
    assert not agenda.over
    first = [config for config in begun if config is not None and config.seed == 1]
    for config in first:
        assert agenda.part(config)[0] == 24
        assert [row["step"] for row in agenda.part(config)[1]] == [0]
        advance(config, tmp_path, 24, dataset)
        assert agenda.next() is None
        agenda.interrupted(config)
    assert [agenda.next().key for _ in first] == [config.key for config in first]  # type: ignore[union-attr]
    assert len(list(agenda.news())) == 2
    assert list(agenda.news()) == []
    agenda.ended(first[0], record_failed(tmp_path, first[0], History(), "broken"))
    assert set(agenda.rows) == {first[0].key}
    other = next(config for config in begun if config is not None and config.seed == 0)
    assert not agenda.spent
    agenda.interrupted(other)  # it did not arrive
    assert agenda.spent


def test_a_member_is_no_run_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"population\.id = '[0-9a-f]{12}': is set by a sweep with pbt"):
        run(MEMBERS[0], tmp_path)
    assert configuration.parse(MEMBERS[0].to_dict()).key == KEYS[0]
