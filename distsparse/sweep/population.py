"""A population's members on disk: how far each has trained, what was decided, and who goes on with what."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distsparse import results
from distsparse.config import RunConfig, override
from distsparse.launch.lock import TrialInUse, exclusive
from distsparse.launch.record import checkpoints_of
from distsparse.sweep.domain import Domain
from distsparse.sweep.pbt import Exchange, Pbt, Settings, compare
from distsparse.train import checkpoint, storage
from distsparse.train.history import Row
from distsparse.train.reporter import name_of_step, saved_in


@dataclass(frozen=True)
class Standing:
    """The newest readable checkpoint of a trial."""

    step: int
    rows: Sequence[Row]
    """of ``steps`` so far"""
    member: int | None
    """who trained to there"""


def standing(place: str) -> Standing | None:
    """Return where a trial stands; None before its first checkpoint."""
    for saved in reversed(saved_in(place)):
        with storage.reading(saved) as folder:
            if checkpoint.problem(folder) is None:
                state = checkpoint.plain_values(folder)
                member = state["config"].get("population", {}).get("member")
                return Standing(int(state["step"]), state["history"]["steps"], member)
    return None


def population_folder(root: Path, study: str) -> Path:
    """Return the folder of what a study's populations decided."""
    return root / study / "populations"


@contextmanager
def alone(root: Path, members: Sequence[RunConfig]) -> Iterator[None]:
    """Hold the populations of some members for a block: one sweep decides for them.

    Raises:
        TrialInUse: another sweep does.
    """
    with ExitStack() as held:
        for name in sorted({str(config.population.id) for config in members}):
            try:
                held.enter_context(exclusive(population_folder(root, members[0].study) / name))
            except TrialInUse:
                raise TrialInUse(
                    f"another sweep trains population {name} of study {members[0].study} now"
                ) from None
        yield


class Population:
    """Members of one seed. Each trains up to a comparison, and goes on when all that still train are there.

    What was decided is one file, written whole before anybody copies; whether a member has copied shows in
    its checkpoint. So a driver that was killed at any moment finds its population again.

    Args:
        members: in order, with their first settings.
        rule: see :class:`~distsparse.sweep.pbt.Pbt`.
        domains: of the space.
        steps: of each comparison, with what may change there.
        root: the results' folder.
        search_seed: of the draws, beside the members' own seed.
    """

    def __init__(
        self,
        members: Sequence[RunConfig],
        rule: Pbt,
        domains: Sequence[Domain],
        steps: Mapping[int, Sequence[Domain]],
        root: Path,
        *,
        search_seed: int,
    ) -> None:
        self._members = {config.key: config for config in members}
        self._rule, self._steps, self._root = rule, steps, root
        self._paths = [domain.path for domain in domains]
        self._seed = (search_seed, members[0].seed)
        self._file = population_folder(root, members[0].study) / (
            f"{members[0].population.id}-{members[0].seed}.json"
        )
        self._decided = _read(self._file)
        self._open: set[str] = set()
        self._arrived: dict[str, float] = {}
        self.halted = False
        """whether a member stopped on its way, because the sweep is asked to"""
        self.news: list[str] = []
        """lines that tell what was exchanged, until somebody takes them"""

    @property
    def trains(self) -> bool:
        """Whether some member has neither completed nor failed."""
        return bool(self._open)

    def begin(self, over: Set[str]) -> list[RunConfig]:
        """Take up the population where its files leave it; return the members to train now."""
        self._open = self._members.keys() - over
        if self._decided:
            self._copy(max(self._decided))
            self._check_checkpoints()
        here = []
        for key in self._members:
            if key in self._open and not self._arrives(key):
                here.append(self.config(key))
        return [*here, *self._go_on()]

    def ended_part(self, key: str) -> list[RunConfig]:
        """Hear that a member trained no further; return the members to train now."""
        if not self._arrives(key):
            self.halted = True
        return self._go_on()

    def left(self, key: str) -> list[RunConfig]:
        """Hear that a member completed or failed; return the members to train now."""
        self._open.discard(key)
        return self._go_on()

    def until(self) -> int | None:
        """Return the step of the next comparison; None if there is no more."""
        return min((step for step in self._steps if step not in self._decided), default=None)

    def config(self, key: str) -> RunConfig:
        """Return a member's configuration with its present settings."""
        return override(self._members[key], self._settings(key))

    def lineage(self, key: str) -> list[Row]:
        """Return a member's rows of the table ``lineage`` so far."""
        rows: list[Row] = [{"step": 0, "settings": json.dumps(self._first_settings(key))}]
        for step, exchanges in sorted(self._decided.items()):
            if key in exchanges:
                found = exchanges[key]
                values = asdict(found) | {"settings": json.dumps(found.settings)}
                rows.append({"step": step, "metric": self._rule.metric, **values})
        return rows

    def _arrives(self, key: str) -> bool:
        """Take a member in that stands at the next comparison; return whether it does."""
        step = self.until()
        found = standing(self._place(key))
        if step is None or found is None or found.step != step:
            return False
        (row,) = [row for row in found.rows if row["step"] == step]
        self._arrived[key] = row["test_accuracy" if self._rule.metric == "accuracy" else self._rule.metric]
        return True

    def _go_on(self) -> list[RunConfig]:
        """If nobody is awaited any more, compare and exchange; return the members to train now."""
        if not self._arrived or self._arrived.keys() != self._open:
            return []
        step = self.until()
        assert step is not None
        scores = {key: self._arrived[key] for key in self._members if key in self._arrived}
        settings = {key: self._settings(key) for key in scores}
        self._decided[step] = compare(
            scores, settings, self._rule, self._steps[step], seed=(*self._seed, step)
        )
        _write(self._file, self._decided)
        self._arrived = {}
        self._copy(step)
        return [self.config(key) for key in scores]

    def _copy(self, step: int) -> None:
        """Give each member that takes over another's state at a step that checkpoint, unless it has it."""
        for key, found in self._decided[step].items():
            if found.source is None or key not in self._open:
                continue
            present = standing(self._place(key))
            own = self._members[key].population.member
            awaits = present is None or (present.step, present.member) == (step, own) or present.step < step
            if awaits and _take_over(self._place(found.source), self._place(key), step):
                self.news.append(_told(step, key, found))

    def _check_checkpoints(self) -> None:
        """Refuse to train from the start what was compared already: its lineage would tell what never was.

        Raises:
            ValueError: a member's checkpoints are gone.
        """
        last = max(self._decided)
        for key in self._decided[last].keys() & self._open:
            if standing(self._place(key)) is None:
                raise ValueError(
                    f"trial {key} was compared at step {last}, and has no readable checkpoint in "
                    f"{self._place(key)}; put it back, or give the study another name to begin again"
                )

    def _settings(self, key: str) -> Settings:
        for step in sorted(self._decided, reverse=True):
            if key in self._decided[step]:
                return self._decided[step][key].settings
        return self._first_settings(key)

    def _first_settings(self, key: str) -> Settings:
        values = self._members[key].to_dict()
        sections = [path.split(".") for path in self._paths]
        return {f"{section}.{name}": values[section][name] for section, name in sections}

    def _place(self, key: str) -> str:
        return checkpoints_of(self._root, self._members[key])


def _told(step: int, key: str, found: Exchange) -> str:
    values = " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in found.settings.items()
    )
    return (
        f"step {step}: {key} ({found.score:.4f}) goes on from {found.source} ({found.source_score:.4f}) "
        f"with {values}"
    )


def _take_over(source: str, target: str, step: int) -> bool:
    """Put a checkpoint of one trial in the place of all of another's; return whether it was there."""
    name = name_of_step(step)
    if name not in map(storage.name_of, saved_in(source)):
        return False
    place = storage.join(target, name)
    with storage.reading(storage.join(source, name)) as folder, storage.writing(place) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
    # Its own earlier ones are of another life: it must not fall back on them.
    for saved in saved_in(target):
        if storage.name_of(saved) != name:
            storage.remove(saved)
    return True


def _read(file: Path) -> dict[int, dict[str, Exchange]]:
    if not file.exists():
        return {}
    entries: list[dict[str, Any]] = json.loads(file.read_bytes())
    return {
        entry["step"]: {key: Exchange(**values) for key, values in entry["members"].items()}
        for entry in entries
    }


def _write(file: Path, decided: Mapping[int, Mapping[str, Exchange]]) -> None:
    entries = [
        {"step": step, "members": {key: asdict(found) for key, found in exchanges.items()}}
        for step, exchanges in sorted(decided.items())
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with results.replacing(file) as handle:
        handle.write(json.dumps(entries, indent=1).encode())
