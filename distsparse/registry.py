"""Names for factories, and the schema of a factory's keywords.

A factory's **signature is its schema**: positional parameters are supplied by the program (a model's input
shape, an optimizer's parameters), keyword-only parameters are what a user may set. Their annotations carry
range and description (``Annotated[int, Field(gt=0, description=...)]``), their defaults are the defaults.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A named factory and the schema of its keywords."""

    kind: str
    name: str
    factory: Callable[..., T]

    @cached_property
    def schema(self) -> type[BaseModel]:
        """Strict pydantic model of the factory's keyword-only parameters; unknown keys are refused."""
        hints = typing.get_type_hints(self.factory, include_extras=True)
        fields: dict[str, Any] = {
            parameter.name: (
                hints.get(parameter.name, Any),
                ... if parameter.default is inspect.Parameter.empty else parameter.default,
            )
            for parameter in inspect.signature(self.factory).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        config = ConfigDict(
            extra="forbid",
            frozen=True,
            validate_default=True,
            protected_namespaces=(),
            allow_inf_nan=False,
            strict=True,
        )
        return create_model(f"{self.kind}.{self.name}", __config__=config, **fields)

    @property
    def summary(self) -> str:
        """First line of the factory's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

    @property
    def source(self) -> str:
        """First line of the docstring of the module that holds the factory: what it is and its paper."""
        module = inspect.getmodule(self.factory)
        return (inspect.getdoc(module) or "").partition("\n")[0] if module else ""

    def parse(self, values: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Return ``values`` checked and completed with defaults.

        Raises:
            ValueError: naming the dotted path below ``path``, the value and what is allowed.
        """
        for name, value in values.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}.{name} = {value!r}: {error}") from None
        try:
            # As JSON: lists may be tuples, and yet 1 is no bool and "1" no number.
            return dict(self.schema.model_validate_json(json.dumps(dict(values))))
        except ValidationError as error:
            known = list(self.schema.model_fields)
            raise ValueError(describe(error, path, known)) from None


class Registry(Generic[T]):
    """Factories of one kind by name; ``package.module:function`` names one that was never registered."""

    def __init__(self, kind: str, *, entry_point_group: str | None = None) -> None:
        self.kind = kind
        self._group = entry_point_group
        self._entries: dict[str, Entry[T]] = {}
        self._plugins_loaded = entry_point_group is None

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorate a factory to be known as ``name``."""

        def decorate(factory: Callable[..., T]) -> Callable[..., T]:
            assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
            self._entries[name] = Entry(self.kind, name, factory)
            return factory

        return decorate

    def names(self) -> list[str]:
        """Return every registered name, sorted."""
        self._load_plugins()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter([self._entries[name] for name in self.names()])

    def get(self, name: str) -> Entry[T]:
        """Return the entry of a name, or import ``package.module:function``.

        Raises:
            ValueError: unknown name, or a reference that cannot be imported.
        """
        self._load_plugins()
        if name in self._entries:
            return self._entries[name]
        if ":" not in name:
            raise ValueError(
                f"unknown {self.kind} {name!r}{suggestion(name, self.names())}; "
                f"allowed: {', '.join(self.names())}, or package.module:function"
            )
        module_name, _, attribute = name.partition(":")
        try:
            factory = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"{self.kind} {name!r} cannot be imported: {error}") from None
        try:
            inspect.signature(factory)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.kind} {name!r} is no function with a signature: {error}") from None
        return Entry(self.kind, name, factory)

    def _load_plugins(self) -> None:
        """Import what other packages declare, once.

        Raises:
            ValueError: a plug-in cannot be imported, or takes a name that is taken.
        """
        if self._plugins_loaded:
            return
        before = dict(self._entries)
        self._plugins_loaded = True  # first: a plug-in may look up a name while it is imported
        for plugin in entry_points(group=self._group or ""):
            try:
                plugin.load()
            except Exception as error:  # anybody's code
                # As if never tried, so that every later look-up says the same.
                self._entries, self._plugins_loaded = before, False
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"entry point {plugin.name!r} of {self._group} ({plugin.value}) cannot be loaded: "
                    f"{type(error).__name__}: {reason}; repair or uninstall its package"
                ) from None


def suggestion(name: str, known: list[str]) -> str:
    """Return ' (did you mean …?)' for the closest known name, ignoring case, or an empty string."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def describe(error: ValidationError, path: str, known: list[str]) -> str:
    """Return one line for a validation error: dotted path, value, what is allowed."""
    lines: dict[str, list[str]] = {}
    for item in error.errors():
        # A union reports one error per alternative, with the alternative's tag behind the field's name.
        name = str(item["loc"][0]) if item["loc"] else ""
        dotted = f"{path}.{name}" if path and name else name or path
        if item["type"] == "extra_forbidden":
            allowed = ", ".join(known) or "nothing"
            lines.setdefault(f"unknown key {dotted!r}{suggestion(name, known)}", []).append(
                f"allowed: {allowed}"
            )
        elif item["type"] == "missing":
            lines.setdefault(dotted, []).append("is required")
        else:
            message = item["msg"][0].lower() + item["msg"][1:]
            lines.setdefault(f"{dotted} = {item['input']!r}", []).append(
                message.removeprefix("value error, ")
            )
    return "; ".join(
        f"{subject}: {' or '.join(dict.fromkeys(reasons))}" for subject, reasons in lines.items()
    )
