"""One run's whole configuration: parsed strictly, completed with defaults, addressed by dotted names.

``model``, ``data``, ``method``, ``optimizer`` and ``lr_schedule`` name a factory and its keywords; the
factory's signature is their schema. The other sections are declared here. YAML files,
``--set method.delta_T=200`` and sweep spaces all go through :func:`override`, and the same dotted name is the
results' column.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distsparse.data import datasets
from distsparse.dist import Compression
from distsparse.methods import methods
from distsparse.models import models
from distsparse.optim import NOT_SHARDED, optimizers, schedules
from distsparse.registry import Registry, describe, suggestion


class Section(BaseModel):
    """A strict, frozen part of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Sparsify(Section):
    """Which weights are sparsified."""

    include: Annotated[
        tuple[str, ...], Field(min_length=1, description="glob patterns of weights to sparsify")
    ] = ("*",)
    exclude: Annotated[tuple[str, ...], Field(description="glob patterns of weights to leave dense")] = ()


class Train(Section):
    """The training loop."""

    epochs: Annotated[int, Field(gt=0, description="passes over the training data")] = 10
    batch_size: Annotated[
        int, Field(gt=0, description="samples of one optimizer step, over all workers and micro-batches")
    ] = 100
    accumulation: Annotated[
        int, Field(gt=0, description="micro-batches whose gradients make one optimizer step")
    ] = 1
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="of the cross-entropy loss")] = 0.0
    clip_norm: Annotated[
        float | None, Field(gt=0, description="largest norm of the (masked) gradient; null does not clip")
    ] = None
    precision: Annotated[
        Literal["fp32", "bf16", "fp16", "fp64"],
        Field(description="bf16 and fp16 are mixed precision; fp64 computes in double"),
    ] = "fp32"
    evaluate_every: Annotated[int, Field(gt=0, description="epochs between evaluations")] = 1
    log_every: Annotated[int, Field(gt=0, description="optimizer steps between rows of the steps table")] = 50
    evaluation_batch_size: Annotated[int, Field(gt=0, description="samples of one evaluation batch")] = 1000


class CheckpointEvery(Section):
    """When the run can be resumed from, and where."""

    every_steps: Annotated[
        int | None, Field(gt=0, description="optimizer steps between checkpoints; null: each epoch")
    ] = None
    keep: Annotated[int, Field(gt=0, description="checkpoints kept while training")] = 2
    storage: Annotated[
        str | None,
        Field(min_length=1, description="folder, or URI such as s3://bucket/runs; null: with the results"),
    ] = None


class LatencySettings(Section):
    """Latency of the trained network."""

    measure: Annotated[bool, Field(description="measure dense and CSR latency after training")] = True
    num_threads: Annotated[int, Field(gt=0, description="threads of the measured network")] = 1


class Launch(Section):
    """Where the loop runs."""

    workers: Annotated[
        int, Field(ge=0, description="Ray Train workers; 0 trains in this process, without Ray Train")
    ] = 0
    min_workers: Annotated[
        int | None,
        Field(gt=0, description="fewest workers to go on with, where not all fit; null: launch.workers"),
    ] = None
    cpus_per_worker: Annotated[float, Field(gt=0, description="CPUs of one worker, or of one trial")] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0, description="GPUs of one worker, or of one trial")] = 0.0
    num_threads: Annotated[
        int | None,
        Field(gt=0, description="CPU threads of one process; null: all cores, or a worker's CPUs under Ray"),
    ] = None
    all_reduce: Annotated[
        Literal["active", "dense"],
        Field(description="gradient entries that travel between workers, where the method does not read all"),
    ] = "active"
    compression: Annotated[
        Compression, Field(description="number format of the gradients that travel; none: their own")
    ] = "none"
    shard: Annotated[
        bool,
        Field(
            description="each worker holds a part of weights, gradients, masks and optimizer state (FSDP2), "
            "not all of them (DDP)"
        ),
    ] = False
    max_failures: Annotated[
        int, Field(ge=0, description="restarts from the last checkpoint after a worker or its node died")
    ] = 3
    timeout_s: Annotated[
        float, Field(gt=0, description="seconds that workers wait for one of them before the run fails")
    ] = 1800.0


class Population(Section):
    """Where the run stands in a population, whose members' settings change while they train."""

    id: Annotated[
        str | None, Field(min_length=1, description="population of the trial; set by a sweep with pbt")
    ] = None
    member: Annotated[int | None, Field(ge=0, description="its number in the population")] = None


class Loggers(Section):
    """Experiment trackers that a run's rows also go to. Credentials are taken from the environment only."""

    tensorboard: Annotated[bool, Field(description="TensorBoard, in <results>/<study>/tensorboard")] = False
    wandb: Annotated[
        Literal["online", "offline"] | None,
        Field(description="Weights & Biases, a group for each study; offline writes for `wandb sync`"),
    ] = None
    wandb_project: Annotated[
        str | None, Field(min_length=1, description="null: WANDB_PROJECT, or else distsparse")
    ] = None
    mlflow: Annotated[bool, Field(description="MLflow, an experiment for each study")] = False
    mlflow_uri: Annotated[
        str | None,
        Field(
            min_length=1,
            description="tracking server or database; null: MLFLOW_TRACKING_URI, or else <results>/mlflow.db",
        ),
    ] = None
    tags: Annotated[tuple[str, ...], Field(description="of the runs, in W&B and MLflow")] = ()


COMPONENTS: dict[str, tuple[Registry[Any], str]] = {
    "model": (models, "mlp"),
    "data": (datasets, "digits"),
    "method": (methods, "rigl"),
    "optimizer": (optimizers, "sgd"),
    "lr_schedule": (schedules, "cosine"),
}
SECTIONS: dict[str, type[Section]] = {
    "sparsify": Sparsify,
    "train": Train,
    "checkpoint": CheckpointEvery,
    "latency": LatencySettings,
    "launch": Launch,
    "population": Population,
    "loggers": Loggers,
}
SECRET = re.compile(r"(password|secret|token|access_key)[^=&]*=", re.IGNORECASE)
IN_A_POPULATION = "is set by a sweep with pbt; leave population out to train these settings on their own"
# Neither where results and logs go, nor how often a run is saved, measured or begun again makes it another
# trial.
NOT_IDENTITY = (
    "study",
    "checkpoint",
    "latency",
    "loggers",
    "launch.min_workers",
    "launch.max_failures",
    "launch.timeout_s",
)


@dataclass(frozen=True)
class Component:
    """A factory's name and its checked keywords, completed with defaults."""

    name: str
    params: Mapping[str, Any]


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run."""

    study: str
    seed: int
    model: Component
    data: Component
    method: Component
    optimizer: Component
    lr_schedule: Component
    sparsify: Sparsify
    train: Train
    checkpoint: CheckpointEvery
    latency: LatencySettings
    launch: Launch
    population: Population
    loggers: Loggers
    given: Mapping[str, Any] = field(compare=False, repr=False)
    """what the user said, without defaults: what an override starts from"""

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as nested plain values, defaults included; :func:`parse` reads it back."""
        result: dict[str, Any] = {"study": self.study, "seed": self.seed}
        for kind in COMPONENTS:
            component: Component = getattr(self, kind)
            result[kind] = {"name": component.name, **component.params}
        for name in SECTIONS:
            result[name] = getattr(self, name).model_dump(mode="json")
        plain: dict[str, Any] = json.loads(json.dumps(result))
        return plain

    def flat(self) -> dict[str, Any]:
        """Return the configuration by dotted name; lists as JSON text."""
        flat: dict[str, Any] = {}
        for section, value in self.to_dict().items():
            if isinstance(value, dict):
                for name, item in value.items():
                    flat[f"{section}.{name}"] = json.dumps(item) if isinstance(item, (list, dict)) else item
            else:
                flat[section] = value
        return flat

    @property
    def key(self) -> str:
        """12 hexadecimal characters that identify the trial within a study.

        A member of a population stays who it is while its settings change.
        """
        identity = self.to_dict()
        population = identity.pop("population")
        if self.population.id is not None:
            identity = {"population": population, "seed": self.seed}
        else:
            for path in NOT_IDENTITY:
                section, _, name = path.partition(".")
                del (identity[section] if name else identity)[name or section]
        return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()


def parse(values: Mapping[str, Any]) -> RunConfig:
    """Return a checked configuration from nested plain values; what is absent takes its default.

    Raises:
        ValueError: naming the dotted path, the value and what is allowed.
    """
    allowed = ["study", "seed", *COMPONENTS, *SECTIONS]
    for name in values:
        if name not in allowed:
            if name in ("space", "search", "base"):
                raise ValueError(f"key {name!r}: this is a sweep's space; run it with `distsparse sweep`")
            raise ValueError(
                f"unknown key {name!r}{_hint(str(name), values, allowed)}: allowed: {', '.join(allowed)}"
            )
    given = copy.deepcopy(dict(values))
    seed, study = given.get("seed", 0), given.get("study", "default")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed = {seed!r}: must be a whole number of at least 0 and less than 2^63")
    if not isinstance(study, str):
        raise ValueError(f"study = {study!r}: must be a name")
    parts: dict[str, Any] = {kind: _component(kind, given.get(kind, {})) for kind in COMPONENTS}
    parts |= {name: _section(name, given.get(name, {})) for name in SECTIONS}
    config = RunConfig(study=study, seed=seed, given=given, **parts)
    _check_batches(config)
    _check_min_workers(config)
    _check_shard(config)
    _check_storage(config.checkpoint.storage)
    _check_loggers(config.loggers)
    return config


def _hint(name: str, values: Mapping[str, Any], allowed: list[str]) -> str:
    """Return ' (did you mean …?)': a section's own key of that name first, then the closest section."""
    for kind, (_, default) in COMPONENTS.items():
        section = values.get(kind, default)
        if name in keywords(kind, section.get("name", default) if isinstance(section, Mapping) else section):
            return f" (did you mean '{kind}.{name}'?)"
    for section, model in SECTIONS.items():
        if name in model.model_fields:
            return f" (did you mean '{section}.{name}'?)"
    return suggestion(name, allowed)


def override(base: RunConfig | Mapping[str, Any], values: Mapping[str, Any]) -> RunConfig:
    """Return ``base`` with values replaced by dotted name.

    A whole section may be replaced (``{"method": {"name": "set", "alpha": 0.5}}``). Where only a component's
    name changes (``{"method.name": "set"}``), it keeps those of the old one's given keywords that the new one
    also takes; everything else takes the new one's defaults.

    Raises:
        ValueError: as :func:`parse`, also for a path that leads nowhere.
    """
    nested = copy.deepcopy(dict(base.given if isinstance(base, RunConfig) else base))
    # Sections first, then names, then keywords: an explicit keyword always wins.
    for path in sorted(values, key=lambda p: (p.count("."), not p.endswith(".name"))):
        head, _, tail = path.partition(".")
        if not tail:
            nested[head] = copy.deepcopy(values[path])
            continue
        if head not in COMPONENTS and head not in SECTIONS:
            known = [*COMPONENTS, *SECTIONS]
            raise ValueError(f"unknown path {path!r}{suggestion(head, known)}: sections: {', '.join(known)}")
        section = nested.get(head, {})
        if not isinstance(section, (str, Mapping)):
            raise ValueError(f"{head} = {section!r}: must be a mapping")
        section = {"name": section} if isinstance(section, str) else dict(section)
        if head in COMPONENTS and tail == "name" and section.get("name", COMPONENTS[head][1]) != values[path]:
            accepted = keywords(head, values[path])
            section = {name: value for name, value in section.items() if name in accepted}
        section[tail] = copy.deepcopy(values[path])
        nested[head] = section
    return parse(nested)


def keywords(kind: str, name: Any) -> set[str]:
    """Return the keywords of a component, such as the method rigl; none if there is no such component."""
    try:
        return set(COMPONENTS[kind][0].get(name).schema.model_fields)
    except (ValueError, TypeError):
        return set()  # parse() reports the name


def columns() -> dict[str, Any]:
    """Return the annotation of every dotted name that any registered component or section has."""
    found: dict[str, Any] = {"study": str, "seed": int}
    for kind, (registry, _) in COMPONENTS.items():
        found[f"{kind}.name"] = str
        for entry in registry:
            for name, info in entry.schema.model_fields.items():
                found.setdefault(f"{kind}.{name}", info.annotation)
    for section, model in SECTIONS.items():
        for name, info in model.model_fields.items():
            found[f"{section}.{name}"] = info.annotation
    return found


def _component(kind: str, value: Any) -> Component:
    registry, default = COMPONENTS[kind]
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"{kind} = {value!r}: must be a name, or a mapping with 'name' and its parameters")
    name = value.get("name", default)
    if not isinstance(name, str):
        raise ValueError(f"{kind}.name = {name!r}: must be text")
    try:
        entry = registry.get(name)
    except ValueError as error:
        raise ValueError(f"{kind}.name = {name!r}: {error}") from None
    params = entry.parse({k: v for k, v in value.items() if k != "name"}, kind)
    try:
        json.dumps(params)
    except TypeError as error:
        raise ValueError(f"{kind}.name = {name!r}: a keyword's default is no plain value: {error}") from None
    return Component(name, params)


def _section(name: str, value: Any) -> Section:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} = {value!r}: must be a mapping")
    try:
        return SECTIONS[name].model_validate_json(json.dumps(dict(value)))
    except ValidationError as error:
        raise ValueError(describe(error, name, list(SECTIONS[name].model_fields))) from None
    except TypeError as error:  # a date in YAML
        raise ValueError(f"{name} = {value!r}: {error}") from None


def allowed_workers(config: RunConfig) -> list[int]:
    """Return the numbers of workers that a run may go on with: those that have equal shares of a batch."""
    launch, train = config.launch, config.train
    return [
        count
        for count in range(launch.min_workers or launch.workers, launch.workers + 1)
        if train.batch_size % (count * train.accumulation) == 0
    ]


def _check_min_workers(config: RunConfig) -> None:
    launch, train = config.launch, config.train
    if launch.min_workers is None:
        return
    if launch.min_workers > launch.workers:
        raise ValueError(
            f"launch.min_workers = {launch.min_workers}: "
            f"must be at most launch.workers, which is {launch.workers}"
        )
    if launch.min_workers < launch.workers and allowed_workers(config) == [launch.workers]:
        raise ValueError(
            f"launch.min_workers = {launch.min_workers}: train.batch_size = {train.batch_size} must be a "
            f"multiple of n × train.accumulation for a number n of workers from there to {launch.workers - 1}"
        )


def _check_batches(config: RunConfig) -> None:
    parts = max(config.launch.workers, 1) * config.train.accumulation
    if config.train.batch_size % parts:
        raise ValueError(
            f"train.batch_size = {config.train.batch_size}: must be a multiple of {parts}, "
            "launch.workers × train.accumulation"
        )


def _check_shard(config: RunConfig) -> None:
    launch = config.launch
    if not launch.shard:
        return
    if launch.workers == 0:
        raise ValueError(
            "launch.shard = True: needs workers to shard over; launch.workers must be at least 1"
        )
    if launch.compression != "none":
        raise ValueError(
            f"launch.compression = {launch.compression!r}: must be none with launch.shard, which has its own "
            "reduction of gradients"
        )
    if config.optimizer.name in NOT_SHARDED:
        raise ValueError(
            f"optimizer.name = {config.optimizer.name!r}: does not run with launch.shard; allowed is any but "
            + ", ".join(NOT_SHARDED)
        )
    if config.train.precision == "fp16":
        raise ValueError("train.precision = 'fp16': with launch.shard allowed are fp32, bf16, fp64")


def _has_secret(uri: str) -> bool:
    """Tell whether a URI holds a password, a key, or the user name of a web address, which may be a token."""
    parts = urlsplit(uri)
    user = parts.scheme in ("http", "https") and parts.username is not None
    return user or parts.password is not None or bool(SECRET.search(parts.query))


def _check_storage(storage: str | None) -> None:
    if storage is not None and "://" in storage and _has_secret(storage):
        raise ValueError(
            "checkpoint.storage: must not hold a password or a key; leave them to the environment, as for "
            "the tools of the store itself"
        )


def _check_loggers(loggers: Loggers) -> None:
    uri = loggers.mlflow_uri
    if uri is not None and _has_secret(uri):
        # The value is left out: it would be in a log file now, as it would be in every table.
        raise ValueError(
            "loggers.mlflow_uri: must not hold a password; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or give the whole URI as MLFLOW_TRACKING_URI"
        )
