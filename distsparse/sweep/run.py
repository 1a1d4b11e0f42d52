"""A sweep: every trial of a space through Ray Tune, side by side, each writing its own tables."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from ray import tune

from distsparse import results
from distsparse.config import Launch, RunConfig
from distsparse.data import Dataset
from distsparse.launch import record_latency
from distsparse.launch.lock import TrialInUse, exclusive
from distsparse.launch.record import finished_row
from distsparse.launch.run import make_study_folder
from distsparse.launch.session import alone_on_a_node, connected, fitting, require
from distsparse.launch.stop import stops_on_signals
from distsparse.sweep.adaptive import Adaptive
from distsparse.sweep.agenda import Agenda, Listed, Search
from distsparse.sweep.goal import Goal
from distsparse.sweep.live import Live, varying
from distsparse.sweep.pbt import Pbt, check_run, comparisons
from distsparse.sweep.pool import bundles
from distsparse.sweep.population import Population, alone
from distsparse.sweep.shared import data_key, share
from distsparse.sweep.space import Space
from distsparse.sweep.stop import StopRequest, StopRule
from distsparse.sweep.trial import run_trial
from distsparse.sweep.tuning import EndAll, Feed, Outcomes
from distsparse.train import check
from distsparse.train.build import build_method
from distsparse.train.history import Row
from distsparse.train.progress import Progress
from distsparse.train.setup import make_plan

CHECKED_POINTS = 8
"""random points of an adaptive search's space that are checked before Ray starts"""
OBJECTIVES = {"accuracy": "max", "sparsity": "max"}
"""of the Pareto front that is shown where the space names no objectives"""
COUNT_NODES_S = 2.0
"""seconds between two looks at what the cluster has"""


def sweep(
    space: Space,
    root: Path,
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    verbose: bool = True,
) -> pd.DataFrame:
    """Run every trial of a space and measure latency; return the study's ``trials`` table.

    Trials that completed before, in the same study, are kept; one that was cut off continues from its last
    checkpoint. A trial that fails is a row with its error; one whose process or node dies is begun again, at
    most ``launch.max_failures`` times, from its checkpoint. Several sweeps may work on one study at once:
    each trial runs in one of them. On SIGINT or SIGTERM, or at the end of the time budget, running trials
    finish their step, save it, and end.

    Args:
        space: see :func:`distsparse.sweep.space.parse_space`.
        root: the results' folder; every node must reach it.
        address: of a running Ray cluster; None starts Ray on this machine.
        num_cpus: CPUs of a Ray started here; all by default.
        verbose: show progress.

    Raises:
        ValueError: a trial's configuration cannot run; raised before Ray starts.
        TrialInUse: another sweep trains the same population.
        KeyboardInterrupt: SIGINT or SIGTERM; its argument is the signal's number.
    """
    root = root.resolve()
    if space.pbt is None:
        return _sweep(space, root, {}, None, address=address, num_cpus=num_cpus, verbose=verbose)
    points = space.points()
    datasets = _check_all([*points, *space.corners()], None)
    populate = _populate(space, space.pbt, root, datasets)
    make_study_folder(root, space.base)
    with alone(root, points):
        return _sweep(space, root, datasets, populate, address=address, num_cpus=num_cpus, verbose=verbose)


def _sweep(
    space: Space,
    root: Path,
    datasets: dict[str, Dataset],
    populate: Callable[[Sequence[RunConfig]], Population] | None,
    *,
    address: str | None,
    num_cpus: int | None,
    verbose: bool,
) -> pd.DataFrame:
    deadline = None if space.time_budget_s is None else time.time() + space.time_budget_s
    agenda = Agenda(
        _search(space, root),
        space.seeds,
        root,
        max_trials=space.max_trials,
        stopped_is_over=space.asha is not None,
        populate=populate,
    )
    waiting = _samples(space) if space.adaptive else agenda.settle()
    datasets = datasets or _check_all(waiting, space.goal)
    make_study_folder(root, space.base)
    left = not agenda.over
    before = set(agenda.rows)
    progress = Progress(agenda.num_trials, initial=len(before), unit="trial", enabled=verbose)
    if before:
        progress.line(f"{len(before)} of {agenda.num_trials} trials completed before")
    try:
        for line in agenda.news():
            progress.line(line)
        if left:
            objectives = space.goal.objectives if space.goal else OBJECTIVES
            live = Live(agenda, progress, objectives, varying([*agenda.configs.values(), *waiting]))
            with connected(address, num_cpus=num_cpus):
                _run_all(agenda, root, space, datasets, deadline, live)
    finally:
        progress.close()
    if not agenda.over:
        progress.line(f"{agenda.num_trials - len(agenda.rows)} trials are left to the same command")
    # A latency that the search read was measured beside other trials.
    again = set(agenda.rows) - before if space.goal and space.goal.measures_latency else set()
    if open_ := _not_measured(agenda, again):
        # A Ray that was started here has ended by now, and its trials with it.
        with connected(address) if address else nullcontext():
            call = partial(alone_on_a_node, record_latency) if address else record_latency
            _measure_all(open_, root, call, again=again, verbose=verbose)
    folder = root / space.base.study
    if not (folder / "trials").is_dir():  # a budget may end before any trial does
        return pd.DataFrame(columns=[column.name for column in results.TABLES["trials"]])
    return results.load(folder)


def _samples(space: Space) -> list[RunConfig]:
    """Return some trials of an adaptive search's space, to check before Ray starts."""
    return replace(space, num_samples=CHECKED_POINTS).configs()


def _populate(
    space: Space, rule: Pbt, root: Path, datasets: dict[str, Dataset]
) -> Callable[[Sequence[RunConfig]], Population]:
    """Return what makes a population of its members.

    Raises:
        ValueError: there are too few members, or they could not be compared or changed.
    """
    base = space.base
    if len(space.points()) < 2:
        raise ValueError("pbt: a population has at least 2 members; raise num_samples")
    dataset = datasets[data_key(base)]
    check_run(rule, base, dataset, space.domains)
    steps = comparisons(rule, base, make_plan(base, dataset, build_method(base)), space.domains)

    def populate(members: Sequence[RunConfig]) -> Population:
        return Population(members, rule, space.domains, steps, root, search_seed=space.search_seed)

    return populate


def _search(space: Space, root: Path) -> Search:
    if not space.adaptive:
        return Listed(space.points())
    earlier: list[Row] = []
    if space.warm_start is not None:
        rows = results.load(space.warm_start).to_dict("records")
        earlier = [{str(name): v for name, v in row.items() if pd.notna(v)} for row in rows]
    search = Adaptive(space, root / space.base.study / "search", earlier=earlier)
    if earlier and not search.num_learnt:
        raise ValueError(f"warm_start = {space.warm_start!r}: none of its trials lies in the space")
    return search


def _check_all(configs: Sequence[RunConfig], goal: Goal | None) -> dict[str, Dataset]:
    """Check each configuration that differs from the ones before in more than its seed; return their data.

    Raises:
        ValueError: one cannot run, or the goal reads a validation split that the data lacks.
    """
    seen: set[str] = set()
    datasets: dict[str, Dataset] = {}
    for config in configs:
        plain = str(config.to_dict() | {"seed": 0})
        if plain not in seen:
            seen.add(plain)
            name = data_key(config)
            datasets[name] = check(config, datasets.get(name))
            validated = goal and [column for column in goal.columns if "validation" in column]
            if validated and datasets[name].validation is None:
                raise ValueError(f"objectives: {validated[0]} needs a validation split; set data.validation")
    return datasets


def _run_all(
    agenda: Agenda,
    root: Path,
    space: Space,
    datasets: dict[str, Dataset],
    deadline: float | None,
    live: Live,
) -> None:
    launch = space.base.launch
    at_first = require(launch)
    # Tune starts the first trials' processes one after another unless that many may be on their way.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_first)
    with _scratch_folder(root) as scratch:
        rule = StopRule(str(scratch / "stop"), deadline)
        request = StopRequest(rule)

        def closed() -> bool:
            return request.stopping or (deadline is not None and time.time() >= deadline)

        shared = share(datasets.items())
        measure = space.goal is not None and space.goal.measures_latency
        # Only Ray Train goes on with fewer workers than there were.
        pool = space.worker_pool and launch.min_workers is None
        trainable = tune.with_parameters(
            run_trial, rule=rule, shared=shared, measure=measure, pool=pool, asha=space.asha
        )
        datasets.clear()  # the store's copy is enough
        tuner = tune.Tuner(
            tune.with_resources(trainable, _resources(launch, pool=pool)),
            tune_config=tune.TuneConfig(
                search_alg=Feed(agenda, root, room=_room(launch, space.max_concurrent), closed=closed),
                scheduler=space.asha.scheduler() if space.asha else None,
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=space.base.study,
                storage_path=str(scratch),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=launch.max_failures),
                callbacks=[Outcomes(agenda, root, live)],
                # A trial ends by itself after its step; one on workers of its own does not hear.
                stop=EndAll(lambda: launch.workers > 0 and not pool and closed()),
            ),
        )
        with stops_on_signals(request.stop):
            tuner.fit()
            if request.stopping:
                raise KeyboardInterrupt


def _resources(launch: Launch, *, pool: bool) -> dict[str, float] | tune.PlacementGroupFactory:
    if launch.workers > 0 and pool:
        return tune.PlacementGroupFactory(bundles(launch))
    if launch.workers > 0:
        # The trial itself only waits; its workers hold the CPUs. {"CPU": 0} alone is refused.
        return {"CPU": 0.0, "memory": 1.0}
    return {"CPU": launch.cpus_per_worker, "GPU": launch.gpus_per_worker}


def _room(launch: Launch, max_concurrent: int | None) -> Callable[[], int]:
    """Return a function for how many trials may run at once; it follows nodes that come and go."""
    looked_at, room = 0.0, 0

    def now() -> int:
        nonlocal looked_at, room
        if time.monotonic() - looked_at > COUNT_NODES_S:
            looked_at, room = time.monotonic(), max(fitting(launch), 1)
        return min(max_concurrent or room, room)

    return now


@contextmanager
def _scratch_folder(root: Path) -> Iterator[Path]:
    """Give a folder for Tune's own files, which nothing reads later, and remove it.

    Those of sweeps that were killed are removed too.
    """
    parent = root / ".tune"
    parent.mkdir(exist_ok=True)
    for left in parent.glob("[0-9a-f]*"):
        with suppress(TrialInUse), exclusive(left):
            shutil.rmtree(left, ignore_errors=True)
            left.with_name(f".{left.name}.lock").unlink(missing_ok=True)
    folder = parent / uuid.uuid4().hex
    try:
        with exclusive(folder):
            folder.mkdir()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f".{folder.name}.lock").unlink(missing_ok=True)
        with suppress(OSError):  # another sweep's may still be there
            parent.rmdir()


def _not_measured(agenda: Agenda, again: Set[str]) -> list[RunConfig]:
    """Return the completed trials whose latency is wanted and was not measured, or only beside others."""
    return [
        config
        for key, config in agenda.configs.items()
        if config.latency.measure
        and agenda.rows[key]["status"] == "completed"
        and ("latency_ms" not in agenda.rows[key] or key in again)
    ]


def _measure_all(
    configs: Sequence[RunConfig],
    root: Path,
    measure: Callable[[Path, RunConfig, Row], tuple[Row, str | None]],
    *,
    again: Set[str],
    verbose: bool,
) -> None:
    """Measure latency one network after another, where no trial is on the cores."""
    progress = Progress(len(configs), unit="network", enabled=verbose)
    progress.line(f"measuring latency of {len(configs)} networks")
    for config in configs:
        row = finished_row(root, config)
        if row is not None and (row["latency_ms"] is None or config.key in again):
            _, problem = measure(root, config, row)
            if problem:
                progress.line(f"{config.key}  {problem}")
        progress.advance()
    progress.close()
