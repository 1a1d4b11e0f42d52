"""Methods by name; other packages add theirs through the entry-point group ``distsparse.methods``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, cast

from distsparse.core import Method
from distsparse.registry import Registry

P = ParamSpec("P")

methods: Registry[Method] = Registry("method", entry_point_group="distsparse.methods")


def method(name: str) -> Callable[[Callable[P, Method]], Callable[P, Method]]:
    """Register a method's factory under a name; calling it checks its keywords against its own schema.

    A bad or unknown keyword raises ``ValueError`` naming it, the value and what is allowed.
    """

    def decorate(factory: Callable[P, Method]) -> Callable[P, Method]:
        @wraps(factory)
        def checked(*args: P.args, **kwargs: P.kwargs) -> Method:
            if args:
                raise ValueError(f"{name} takes keyword arguments only, for example {name}(sparsity=0.9)")
            return cast("Callable[..., Method]", factory)(**methods.get(name).parse(kwargs, name))

        methods.register(name)(checked)
        return checked

    return decorate


def names() -> list[str]:
    """Return every method's name, sorted."""
    return methods.names()
