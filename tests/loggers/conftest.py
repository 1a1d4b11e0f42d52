"""Trackers' packages leave threads and thousands of loggers in the process, which slow every later test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of this folder last."""
    items.sort(key=lambda item: Path(__file__).parent in item.path.parents)
