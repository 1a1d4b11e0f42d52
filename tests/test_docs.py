"""What the documentation says of the tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent


def named_tests(table: str) -> list[tuple[Path, str]]:
    """Files and test names (or none) in the last column; `…::name` is in the file named last."""
    found: list[tuple[Path, str]] = []
    for row in re.findall(r"^\|.*\|$", table, re.MULTILINE)[2:]:
        for named in re.findall(r"`(.+?)`", row.rsplit("|", 2)[1]):
            file, _, name = named.partition("::")
            found.append((found[-1][0] if file == "…" else file_of(file), name))
    return found


def file_of(named: str) -> Path:
    """A file by its path, or by its name alone where no other has it."""
    found = [REPOSITORY / named] if "/" in named else list(TESTS.rglob(named))
    assert len(found) == 1, f"{named}: {len(found)} files"
    assert found[0].is_file(), f"{named}: no such file"
    return found[0].relative_to(REPOSITORY)


def test_every_test_in_the_table_of_faults_exists() -> None:
    named = named_tests((REPOSITORY / "docs" / "faults.md").read_text())
    assert len(named) > 20
    files = sorted({str(file) for file, _ in named})
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", *files]
    done = subprocess.run(collect, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout
    collected = done.stdout.splitlines()
    for file, name in named:
        wanted = f"{file}::{name}" if name else f"{file}"
        # A class is followed by its tests, and a test by its parameters where none are named.
        continued = tuple(wanted + mark for mark in ("::", "["))
        assert any(line == wanted or line.startswith(continued) for line in collected), f"no {wanted}"
