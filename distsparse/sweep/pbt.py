"""Population-based training (Jaderberg et al. 2017, arXiv:1711.09846): who copies whom, and what changes.

Not Ray Tune's scheduler of that name: it refuses trials that a searcher hands out, as all of a sweep's are,
draws from Python's global generator in the order in which reports arrive, and keeps its population in Tune's
own snapshots. What is decided here is a function of scores, settings and seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from distsparse import optim
from distsparse.config import RunConfig
from distsparse.data import Dataset
from distsparse.loggers import TRACKERS
from distsparse.sweep.asha import METRICS
from distsparse.sweep.domain import Domain
from distsparse.train.build import build_method
from distsparse.train.rewind import Plan

Settings = dict[str, Any]
"""dotted name → plain value, of each domain of the space"""

KEYS = ("metric", "interval", "grace", "quantile", "resample_probability", "factors")
METHOD_SETTINGS = ("alpha", "delta_T", "gradient_weight", "gamma")
"""of a method, what an update reads and no topology depends on"""
TRAIN_SETTINGS = ("clip_norm", "label_smoothing")
FIRST_STEP_ONLY = ("initial_accumulator_value",)
"""of optimizers, what only begins a state"""


@dataclass(frozen=True)
class Pbt:
    """At a few steps of their runs, the last of a population take over the state of the first, and vary it.

    A sparse network starts slowly, and what its updates find shows late: nobody copies before the grace is
    over, which may last until the topology is final. Departures from the paper: members are compared at equal
    steps, each waiting for the others, so that an outcome depends on no timing; and each setting stays within
    its domain.
    """

    metric: str = METRICS[0]
    """one of METRICS; higher is better"""
    interval: int = 1
    """epochs between comparisons"""
    grace: float | None = None
    """fraction of the run before which nobody copies; None: until the method's T_end"""
    quantile: float = 0.25
    """share of the population that copies, and that is copied"""
    resample_probability: float = 0.25
    """chance that a setting is drawn anew, instead of being changed a little"""
    factors: tuple[float, ...] = (0.8, 1.2)
    """one of which a number is multiplied by; a choice moves to a neighbour in its list"""


@dataclass(frozen=True)
class Exchange:
    """What a comparison means for one member."""

    score: float
    source: str | None
    """member whose state it takes over, or None"""
    source_score: float | None
    settings: Settings
    """from now on"""


def compare(
    scores: Mapping[str, float],
    settings: Mapping[str, Settings],
    rule: Pbt,
    domains: Sequence[Domain],
    *,
    seed: Sequence[int],
) -> dict[str, Exchange]:
    """Return what each member does; of equal scores the earlier member's ranks higher.

    The last ⌈quantile · n⌉ of n members, at most half, each copy one of as many at the top, drawn evenly,
    unless that one is no better.

    Args:
        scores: of the members in their order.
        settings: of each member until now.
        rule: see :class:`Pbt`.
        domains: of what is changed.
        seed: of the draws; each member has draws of its own.
    """
    ranked = sorted(scores, key=lambda name: -scores[name])
    number = min(math.ceil(rule.quantile * len(ranked) - 1e-9), len(ranked) // 2)
    last = set(ranked[len(ranked) - number :])
    found = {}
    for position, name in enumerate(scores):
        found[name] = Exchange(scores[name], None, None, settings[name])
        if name in last:
            random = np.random.default_rng([*seed, position])
            source = ranked[random.integers(number)]
            if scores[source] > scores[name]:
                values = settings[source] | {
                    domain.path: perturbed(domain, settings[source][domain.path], rule, random)
                    for domain in domains
                }
                found[name] = Exchange(scores[name], source, scores[source], values)
    return found


def perturbed(domain: Domain, value: Any, rule: Pbt, random: np.random.Generator) -> Any:
    """Return another value of a domain, by chance a new draw or one near the value; it may be the same."""
    if random.random() < rule.resample_probability:
        return domain.at(random.random())
    if domain.values:
        position = domain.values.index(value) + (1 if random.random() < 0.5 else -1)
        return domain.values[min(max(position, 0), len(domain.values) - 1)]
    return domain.nearest(value * rule.factors[random.integers(len(rule.factors))])


def comparisons(
    rule: Pbt, config: RunConfig, plan: Plan, domains: Sequence[Domain]
) -> dict[int, list[Domain]]:
    """Return the steps of a run after which members are compared, each with what may change there.

    After T_end nothing reads a method's settings any more, and they stay.

    Raises:
        ValueError: there is none.
    """
    method = build_method(config)
    final = method.stop_step(plan.total_steps) if method.update else 0
    grace = final if rule.grace is None else rule.grace * plan.total_steps
    found = {}
    every = rule.interval * plan.steps_per_epoch
    for step in range(every, plan.total_steps, every):
        matters = [d for d in domains if step <= final or not d.path.startswith("method.")]
        if step > grace and matters:
            found[step] = matters
    if not found:
        raise ValueError(
            f"pbt.interval = {rule.interval}: nothing of the space can change between the grace's end, step "
            f"{grace:g}, and the run's, step {plan.total_steps}, at a multiple of {every} steps"
            + (f"; method settings have no effect after T_end, step {final}" if final else "")
        )
    return found


def check_domains(domains: Sequence[Domain], base: RunConfig) -> None:
    """Refuse a space in which something differs that is fixed during a run.

    Raises:
        ValueError: naming the path and what is allowed.
    """
    allowed = changeable(base)
    for domain in domains:
        if domain.path not in allowed:
            raise ValueError(
                f"space.{domain.path}: pbt changes settings during a run, and lets one member go on from "
                f"another's topology; set it under base. Allowed here: {', '.join(allowed)}"
            )
        # Most optimizers make the buffer in the first step or never.
        buffered = domain.path == "optimizer.momentum" and base.optimizer.name != "sgd"
        if buffered and 0 in domain.probes():
            raise ValueError(
                f"space.optimizer.momentum: {base.optimizer.name} that began with 0 cannot change it during "
                "a run; allowed: values above 0"
            )


def check_run(rule: Pbt, base: RunConfig, dataset: Dataset, domains: Sequence[Domain]) -> None:
    """Refuse a run whose members could not be compared, or not be changed.

    Raises:
        ValueError: naming the setting and what is allowed.
    """
    if rule.metric == "validation_accuracy" and dataset.validation is None:
        raise ValueError(
            "pbt.metric = 'validation_accuracy': needs a validation split; set data.validation, "
            "or pbt.metric: accuracy, which chooses by the test set"
        )
    for name in TRACKERS:
        if value := getattr(base.loggers, name):
            raise ValueError(
                f"loggers.{name} = {value!r}: not with pbt, whose trials take over the rows of others; "
                "a tracker only appends"
            )
    if build_method(base).rounds > 1:
        raise ValueError(f"method.name = {base.method.name!r}: goes back to early weights, pbt only forward")
    if base.lr_schedule.name == "fine_tuning":
        raise ValueError("lr_schedule.name = 'fine_tuning': may end a run early; pbt compares at equal steps")
    # A rehearsal on any parameters.
    optimizer = optim.build_optimizer(
        base.optimizer.name, list(nn.Linear(2, 2).parameters()), base.optimizer.params
    )
    schedule = optim.build_schedule(
        base.lr_schedule.name, optimizer, 10, base.lr_schedule.params, steps_per_epoch=1
    )
    names = {domain.path.partition(".")[2] for domain in domains if domain.path.startswith("optimizer.")}
    optim.change(optimizer, schedule, optim.Options.of(optimizer, schedule), names)


def changeable(base: RunConfig) -> list[str]:
    """Return the dotted names that may change in the middle of a run."""
    found = [
        f"optimizer.{name}"
        for name, value in base.optimizer.params.items()
        if name not in FIRST_STEP_ONLY and all(map(_is_number, value if _is_list(value) else [value]))
    ]
    method = build_method(base)
    names = [name for name in METHOD_SETTINGS if name in base.method.params]
    # Another update would be the last one, which has the final sparsity; a window's sum be half of another's.
    varies = method.phases is not None or method.sparsity(0.0) != method.sparsity(1.0) or not method.init
    if "delta_T" in names and (varies or method.gradient_window > 1):
        names.remove("delta_T")
    return [*found, *(f"method.{name}" for name in names), *(f"train.{name}" for name in TRAIN_SETTINGS)]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def parse_pbt(value: Any) -> Pbt | None:
    """Return the rule of a space's ``pbt``; every key of :class:`Pbt` is optional.

    Raises:
        ValueError: naming the key, the value and what is allowed.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not set(value) <= set(KEYS):
        raise ValueError(f"pbt = {value!r}: must be a mapping with {', '.join(KEYS)}")
    given = dict(value)
    metric = given.get("metric", Pbt.metric)
    if metric not in METRICS:
        raise ValueError(f"pbt.metric = {metric!r}: allowed: {', '.join(METRICS)}")
    interval = given.get("interval", Pbt.interval)
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise ValueError(f"pbt.interval = {interval!r}: must be a whole number of epochs of at least 1")
    grace = given.get("grace", "T_end")
    if grace != "T_end" and not (_is_number(grace) and 0 <= grace < 1):
        raise ValueError(f"pbt.grace = {grace!r}: must be T_end, or a fraction of the run in [0, 1)")
    quantile = given.get("quantile", Pbt.quantile)
    if not _is_number(quantile) or not 0 < quantile <= 0.5:
        raise ValueError(f"pbt.quantile = {quantile!r}: must be a fraction of the population in (0, 0.5]")
    chance = given.get("resample_probability", Pbt.resample_probability)
    if not _is_number(chance) or not 0 <= chance <= 1:
        raise ValueError(f"pbt.resample_probability = {chance!r}: must be in [0, 1]")
    factors = given.get("factors", list(Pbt.factors))
    if (
        not isinstance(factors, list)
        or not factors
        or not all(_is_number(f) and 0 < f < math.inf and f != 1 for f in factors)
    ):
        raise ValueError(f"pbt.factors = {factors!r}: must be a list of numbers above 0, none of them 1")
    return Pbt(metric, interval, None if grace == "T_end" else float(grace), quantile, chance, tuple(factors))
