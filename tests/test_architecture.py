"""Imports point downward only, and heavy packages stay out of the way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import distsparse

PACKAGE = Path(distsparse.__file__).parent

# A part may import those of lower lines, and itself; parts of one line do not know each other.
STACK = [
    {"version", "registry"},
    {"ops"},
    {"dist"},
    {"core"},
    {"methods", "models", "data", "optim"},
    {"config", "functional"},
    {"loggers"},
    {"train"},
    {"launch"},
    {"sweep"},
    {"cli", "__main__"},
]
BESIDE = {
    "results": {"version"},
    "export": {"version", "registry", "ops", "core"},
    "diagnose": {"version", "registry", "ops", "dist", "core"},
}
MAY_ALSO_IMPORT = {name: {"results", "export"} for name in ("launch", "sweep", "cli")} | {"__main__": {"cli"}}

RAY = {"launch", "sweep", "cli"}


def allowed() -> dict[str, set[str]]:
    parts: dict[str, set[str]] = {name: {*below, name} for name, below in BESIDE.items()}
    lower: set[str] = set()
    for line in STACK:
        for name in line:
            parts[name] = lower | {name} | MAY_ALSO_IMPORT.get(name, set())
        lower |= line
    return parts


def imports(file: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, inside functions too; ``from a import b`` is a.b."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    return file.parts[0].removesuffix(".py")


def test_every_part_has_its_place() -> None:
    parts = {part_of(file) for file in FILES} - {"__init__"}
    assert parts <= allowed().keys()
    assert {"ops", "dist", "core", "methods"} <= parts


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_point_downward(file: Path) -> None:
    if part_of(file) == "__init__":
        permitted = {"core", "functional", "methods", "ops", "version"}
    else:
        permitted = allowed()[part_of(file)]
    for name in imports(PACKAGE / file):
        package, *rest = name.split(".")
        if package == "distsparse":
            assert rest, "import a part, not the whole"
            assert rest[0] in permitted, f"{file} imports {name}"
        elif package == "ray":
            assert part_of(file) in RAY, f"{file} imports {name}"
        elif package == "torch":
            assert part_of(file) != "results", f"{file} imports {name}"


def run(script: str) -> str:
    """Run a script in a fresh interpreter; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_leaves_heavy_packages_unloaded() -> None:
    script = """
import sys, distsparse
distsparse.methods.rigl(sparsity=0.5)
print([name for name in ("ray", "matplotlib", "transformers", "pandas", "sklearn") if name in sys.modules])
"""
    assert run(script) == "[]"


BLOCK_RAY = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
try:
    import ray
except ModuleNotFoundError:
    print("blocked")
"""


def test_trains_without_ray() -> None:
    script = """
import torch, distsparse
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
method = distsparse.methods.rigl(sparsity=0.8, delta_T=2)
sparsifier = distsparse.Sparsifier.attach(method, model, optimizer, total_steps=8, seed=0)
sparsifier.initialize()
for _ in range(8):
    optimizer.zero_grad()
    model(torch.randn(4, 10)).square().mean().backward()
    event = sparsifier.step()
    if not event:
        optimizer.step()
print(sparsifier.statistics.num_updates, round(sparsifier.topology.sparsity, 3))
"""
    assert run(BLOCK_RAY + script).split("\n") == ["blocked", "3 0.8"]


def test_everything_below_launch_and_what_runs_locally_imports_without_ray() -> None:
    modules = [
        ".".join(("distsparse", *file.with_suffix("").parts)).removesuffix(".__init__")
        for file in FILES
        if part_of(file) not in {*RAY, "__main__"}
    ]
    modules += ["distsparse.launch", "distsparse.cli.main"]
    script = f"""
import importlib
for name in {modules!r}:
    importlib.import_module(name)
print("pyplot" if "matplotlib.pyplot" in sys.modules else "imported")
"""
    assert run(BLOCK_RAY + script).split("\n") == ["blocked", "imported"]
