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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distsparse.data import datasets
from distsparse.dist import Compression
from distsparse.methods import methods
from distsparse.models import models
from distsparse.optim import optimizers, schedules
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
    """When the run can be resumed from."""

    every_steps: Annotated[
        int | None, Field(gt=0, description="optimizer steps between checkpoints; null: each epoch")
    ] = None
    keep: Annotated[int, Field(gt=0, description="checkpoints kept while training")] = 2


class LatencySettings(Section):
    """Latency of the trained network."""

    measure: Annotated[bool, Field(description="measure dense and CSR latency after training")] = True
    num_threads: Annotated[int, Field(gt=0, description="threads of the measured network")] = 1


class Launch(Section):
    """Where the loop runs."""

    workers: Annotated[
        int, Field(ge=0, description="Ray Train workers; 0 trains in this process, without Ray Train")
    ] = 0
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
    max_failures: Annotated[
        int, Field(ge=0, description="restarts from the last checkpoint after a worker or its node died")
    ] = 3
    timeout_s: Annotated[
        float, Field(gt=0, description="seconds that workers wait for one of them before the run fails")
    ] = 1800.0


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
}
# Neither where results go, nor how often a run is saved, measured or begun again makes it another trial.
NOT_IDENTITY = ("study", "checkpoint", "latency", "launch.max_failures", "launch.timeout_s")


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
        """12 hexadecimal characters that identify the trial within a study."""
        identity = self.to_dict()
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


def _check_batches(config: RunConfig) -> None:
    parts = max(config.launch.workers, 1) * config.train.accumulation
    if config.train.batch_size % parts:
        raise ValueError(
            f"train.batch_size = {config.train.batch_size}: must be a multiple of {parts}, "
            "launch.workers × train.accumulation"
        )
