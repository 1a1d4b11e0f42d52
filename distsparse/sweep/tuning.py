"""The agenda as Ray Tune sees it: a searcher that hands out its trials, callbacks that hear how they end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.search import Searcher

from distsparse import results
from distsparse.config import RunConfig
from distsparse.launch.record import checkpoints_of, last_history, record_failed, record_stopped
from distsparse.loggers import Logs
from distsparse.sweep.agenda import Agenda
from distsparse.sweep.live import Live
from distsparse.sweep.trial import IN_USE, INTERRUPTED
from distsparse.train.history import Row

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 4.0
"""seconds from a trial's death to its next attempt, twice as long each time; what runs runs on"""


class Feed(Searcher):  # type: ignore[misc]  # ray is untyped
    """Gives Tune one trial of the agenda for each that the cluster has room for, and none ahead."""

    def __init__(
        self, agenda: Agenda, root: Path, *, room: Callable[[], int], closed: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._agenda, self._root, self._room, self._closed = agenda, root, room, closed

    def suggest(self, trial_id: str) -> Any:
        """Return a trial's values, None if there is none now, or FINISHED."""
        if self._closed() or self._agenda.spent:
            return Searcher.FINISHED
        # Tune asks at each turn of its loop: mostly there is no room, and nothing else to look at.
        if len(self._agenda.running) >= self._room():
            return None
        if self._agenda.over:
            return Searcher.FINISHED
        config = self._agenda.next()
        if config is None:
            return None
        until, lineage = self._agenda.part(config)
        values = {"config": config.to_dict(), "key": config.key, "root": str(self._root)}
        return {**values, "until": until, "lineage": lineage}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Leave it to :class:`Outcomes`, which knows the error."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the results are the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


class EndAll(Stopper):  # type: ignore[misc]  # ray is untyped
    """Ends every trial once a condition holds."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never end a single trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether the condition holds."""
        return self._condition()


class Outcomes(Callback):  # type: ignore[misc]  # ray is untyped
    """Writes down how each trial ended, and says so.

    Args:
        agenda: hears of it.
        root: the results' folder.
        live: shows it.
    """

    def __init__(self, agenda: Agenda, root: Path, live: Live) -> None:
        self._agenda, self._root, self._live = agenda, root, live

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Keep the display up to date, also while no trial ends."""
        self._live.tick()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take the row that the trial wrote."""
        config = self._config(trial)
        result = trial.last_result or {}
        status = result.get("status")
        for line in result.get("lines", ()):
            self._live.line(f"{config.key}  {line}")
        if status == IN_USE:
            self._agenda.postpone(config)
            return
        if status is None:  # the scheduler ended it, in the middle of a report
            history = last_history(checkpoints_of(self._root, config))
            self._ended(config, record_stopped(self._root, config, history))
            return
        if status == INTERRUPTED:
            self._agenda.interrupted(config)
            self._tell_news()
            return
        rows = results.read_trial(self._root, study=config.study, trial=config.key)
        # On a full disk a failed trial could not write its row.
        unwritten = {"trial": config.key, "status": "failed", "error": result.get("error")}
        self._ended(config, rows[0] if rows else unwritten)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a process died, and that its trial goes on in another one, after a pause.

        Ray may offer a dead node for a while yet: attempts at once would all be spent on it.
        """
        config = self._config(trial)
        count = f"attempt {trial.num_failures + 1} of {config.launch.max_failures + 1}"
        self._live.line(f"{config.key}  {_reason(trial)}: {count}")
        time.sleep(min(FIRST_PAUSE_S * 2 ** (trial.num_failures - 1), LONGEST_PAUSE_S))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the row of a trial whose process died once too often: nobody else can."""
        config = self._config(trial)
        history = last_history(checkpoints_of(self._root, config))
        row = record_failed(self._root, config, history, _reason(trial))
        logs = Logs(config, self._root)
        logs.end(row, history.steps, history.rewires)
        for line in logs.lines():
            self._live.line(f"{config.key}  {line}")
        self._ended(config, row)

    def _config(self, trial: Any) -> RunConfig:
        return self._agenda.running[trial.config["key"]]

    def _ended(self, config: RunConfig, row: Row) -> None:
        self._agenda.ended(config, row)
        self._live.ended(config, row)
        self._tell_news()

    def _tell_news(self) -> None:
        for line in self._agenda.news():
            self._live.line(line)


def _reason(trial: Any) -> str:
    """Return in one line why Tune lost a trial: its process or node died, or something failed around it."""
    text = str(trial.get_error() or "").strip()
    if "node has died" in text or "node died" in text:
        return "ProcessDied: the node of the trial died"
    if not text or "died" in text:
        return "ProcessDied: the process of the trial died"
    return text.splitlines()[-1]
