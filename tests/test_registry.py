from __future__ import annotations

import sys
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from distsparse import registry as registry_module
from distsparse.registry import Entry, Registry, suggestion

Size = Annotated[int, Field(gt=0, le=100, description="how large")]


def shape(
    sides: int,
    /,
    *,
    size: Size = 10,
    Color: Literal["red", "green"] = "red",
    corners: tuple[Annotated[float, Field(ge=0)], ...] = (1.0, 2.0),
    label: str | None = None,
    filled: bool = False,
) -> Any:
    """Make a shape.

    More about it.
    """
    return sides, size, Color, corners, label, filled


@pytest.fixture
def shapes() -> Registry[Any]:
    registry: Registry[Any] = Registry("shape")
    registry.register("polygon")(shape)
    registry.register("dot")(lambda: "dot")
    return registry


def test_names_are_sorted_and_iteration_gives_entries(shapes: Registry[Any]) -> None:
    assert shapes.names() == ["dot", "polygon"]
    assert [entry.name for entry in shapes] == ["dot", "polygon"]
    assert shapes.get("polygon").factory is shape
    assert shapes.get("polygon").summary == "Make a shape."
    assert shapes.get("polygon").kind == "shape"


def test_unknown_name_with_a_suggestion(shapes: Registry[Any]) -> None:
    with pytest.raises(ValueError) as caught:
        shapes.get("Poligon")
    assert str(caught.value) == (
        "unknown shape 'Poligon' (did you mean 'polygon'?); allowed: dot, polygon, or package.module:function"
    )
    with pytest.raises(ValueError, match="unknown shape 'zzz'; allowed"):
        shapes.get("zzz")


def test_a_name_is_registered_once(shapes: Registry[Any]) -> None:
    with pytest.raises(AssertionError, match="registered twice"):
        shapes.register("dot")(shape)


def test_a_reference_names_a_factory_that_was_never_registered(
    shapes: Registry[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("someones_shapes")
    module.star = shape  # type: ignore[attr-defined]
    module.number = 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "someones_shapes", module)
    entry = shapes.get("someones_shapes:star")
    assert entry.factory is shape
    assert entry.name == "someones_shapes:star"
    assert "someones_shapes:star" not in shapes.names()
    for name, message in [
        ("someones_shapes:moon", "cannot be imported: .*moon"),
        ("no_such_package:star", "cannot be imported: .*no_such_package"),
        (":star", "cannot be imported"),
        ("someones_shapes:number", "not a callable object"),
    ]:
        with pytest.raises(ValueError, match=message):
            shapes.get(name)


def test_plugins_are_loaded_once_and_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[Any] = Registry("shape", entry_point_group="tests.shapes")
    loads = []

    class Plugin:
        def load(self) -> None:
            loads.append(1)
            registry.register("plugged")(shape)

    def entry_points(*, group: str) -> list[Plugin]:
        assert group == "tests.shapes"
        return [Plugin()]

    monkeypatch.setattr(registry_module, "entry_points", entry_points)
    assert loads == []
    assert registry.names() == ["plugged"]
    assert registry.get("plugged").factory is shape
    assert loads == [1]


def test_a_plugin_that_fails_says_so_at_every_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[Any] = Registry("shape", entry_point_group="tests.shapes")

    class Plugin:
        name, value = "own", "theirs:module"

        def load(self) -> None:
            registry.register("half")(shape)
            raise ImportError("no such\nlibrary")

    monkeypatch.setattr(registry_module, "entry_points", lambda *, group: [Plugin()])
    expected = r"entry point 'own' of tests.shapes \(theirs:module\) .*: ImportError: no such library;"
    for _ in range(2):
        with pytest.raises(ValueError, match=expected):
            registry.names()
        with pytest.raises(ValueError, match=expected):
            registry.get("half")


@pytest.fixture
def entry() -> Entry[Any]:
    return Entry("shape", "polygon", shape)


def test_the_signature_is_the_schema(entry: Entry[Any]) -> None:
    fields = entry.schema.model_fields
    assert list(fields) == ["size", "Color", "corners", "label", "filled"]  # not the positional one
    assert fields["size"].description == "how large"
    assert fields["size"].default == 10


def test_parse_completes_and_converts(entry: Entry[Any]) -> None:
    assert entry.parse({"size": 3, "corners": [4, 5]}, "shape") == {
        "size": 3,
        "Color": "red",
        "corners": (4.0, 5.0),
        "label": None,
        "filled": False,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "my.shape.size = 0: input should be greater than 0"),
        ({"size": 101}, "my.shape.size = 101: input should be less than or equal to 100"),
        ({"size": "3"}, "my.shape.size = '3': input should be a valid integer"),
        ({"size": True}, "my.shape.size = True: input should be a valid integer"),
        ({"filled": 1}, "my.shape.filled = 1: input should be a valid boolean"),
        ({"Color": "blue"}, "my.shape.Color = 'blue': input should be 'red' or 'green'"),
        ({"corners": [1, -2]}, "my.shape.corners = -2: input should be greater than or equal to 0"),
        ({"corners": [float("inf")]}, "my.shape.corners = inf: input should be a finite number"),
        (
            {"color": "red"},
            "unknown key 'my.shape.color' (did you mean 'Color'?): allowed: size, Color, corners",
        ),
        ({"size": 0, "filled": 2}, "my.shape.size = 0: input should be greater than 0; my.shape.filled = 2"),
        ({"size": 1 + 2j}, "my.shape.size = (1+2j): "),
        ({"label": object}, "my.shape.label = <class 'object'>: "),
    ],
)
def test_parse_names_path_value_and_what_is_allowed(
    entry: Entry[Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        entry.parse(values, "my.shape")
    assert str(caught.value).startswith(message)


def test_a_keyword_without_default_is_required() -> None:
    def factory(*, needed: int) -> None: ...

    entry: Entry[None] = Entry("thing", "t", factory)
    with pytest.raises(ValueError, match=r"thing\.needed: is required"):
        entry.parse({}, "thing")


def test_a_default_is_checked_as_well() -> None:
    def factory(*, size: Size = 0) -> None: ...

    factory.__annotations__["size"] = Size
    with pytest.raises(ValueError, match=r"thing\.size = 0: input should be greater than 0"):
        Entry("thing", "t", factory).parse({}, "thing")


def test_suggestions_ignore_case() -> None:
    assert suggestion("DELTA_t", ["alpha", "delta_T"]) == " (did you mean 'delta_T'?)"
    assert suggestion("nothing", ["alpha"]) == ""
