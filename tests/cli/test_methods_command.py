from __future__ import annotations

import re
from pathlib import Path

import pytest

from distsparse import methods
from distsparse.cli.main import main
from distsparse.cli.methods import to_markdown
from distsparse.methods import methods as registry


@pytest.fixture
def listed(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["methods"]) == 0
    return capsys.readouterr().out


def blocks(text: str) -> dict[str, list[str]]:
    return {block.partition(":")[0]: block.splitlines() for block in text.strip().split("\n\n")}


def test_every_method_with_its_summary_and_paper(listed: str) -> None:
    found = blocks(listed)
    assert list(found) == methods.names()
    for entry in registry:
        assert found[entry.name][0] == f"{entry.name}: {entry.summary}"
        assert found[entry.name][1].strip() == entry.source
    for name in ("rigl", "set", "static"):
        assert "arXiv:" in found[name][1]


def test_every_parameter_with_default_range_and_description(listed: str) -> None:
    found = blocks(listed)
    for entry in registry:
        lines = found[entry.name][2:]
        names = [line.split(" = ")[0].strip() for line in lines[::2]]
        assert names == list(entry.schema.model_fields)
        for (name, info), first, second in zip(
            entry.schema.model_fields.items(), lines[::2], lines[1::2], strict=True
        ):
            default = "required" if info.is_required() else repr(info.default)
            assert first.startswith(f"  {name} = {default}  (")
            assert info.description
            assert second.strip() == info.description


def test_ranges_are_those_that_are_checked(listed: str) -> None:
    rigl = blocks(listed)["rigl"]
    expected = {
        "sparsity": "0.9  (float ≥ 0, < 1)",
        "delta_T": "100  (int > 0)",
        "alpha": "0.3  (float > 0, ≤ 1)",
        "T_end": "0.75  (float > 0)",
        "alpha_schedule": "'cosine'  (constant | cosine | linear | inverse_power)",
        "exclude_dropped": "False  (bool)",
    }
    for name, text in expected.items():
        assert f"  {name} = {text}" in rigl
    assert re.search(r"allocation = 'erk'  \(.*\berk\b.*\)", "\n".join(rigl))


def test_only_the_methods_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "set", "dense"]) == 0
    assert list(blocks(capsys.readouterr().out)) == ["set", "dense"]


def test_unknown_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "rigel"]) == 2
    assert "did you mean 'rigl'" in capsys.readouterr().err


def test_reference_is_up_to_date() -> None:
    path = Path(__file__).parents[2] / "docs" / "methods.md"
    command = "Path('docs/methods.md').write_text(distsparse.cli.methods.to_markdown())"
    assert path.read_text() == to_markdown(), f"write it again: {command}"


def test_reference_has_moves_papers_and_ranges() -> None:
    sections = dict(
        section.split("\n", 1) for section in to_markdown().removeprefix("# Methods").split("\n## ")[1:]
    )
    assert list(sections) == methods.names()
    for entry in registry:
        assert entry.summary in sections[entry.name]
        assert entry.source in sections[entry.name]
        for name, info in entry.schema.model_fields.items():
            default = "required" if info.is_required() else repr(info.default)
            assert f"| `{name}` | `{default}` | " in sections[entry.name]
            assert (info.description or "").replace("|", "\\|") in sections[entry.name]
    rigl = sections["rigl"]
    assert "- First topology: `prune(random, erk)`\n" in rigl
    assert "- Update: `drop(magnitude)` → `grow(gradient)`\n" in rigl
    assert "| `alpha` | `0.3` | float > 0, ≤ 1 | " in rigl
    assert "| `group` | `'layer'` | layer \\| row \\| int > 1 | " in rigl
    assert "| `tile` | `(1, 1)` | (int ≥ 1, int ≥ 1) | " in rigl
    imp = sections["imp"]
    assert "- Update between two rounds of training: `prune(magnitude, global_magnitude)`\n" in imp
    assert "- First topology: that of `source`\n- Update: none\n" in sections["lottery"]
    assert "- First topology: all weights active\n- Update: none\n\nNo parameters." in sections["dense"]
