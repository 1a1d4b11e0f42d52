"""Two workers that nothing happens to: what a run with a fault is held against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from plants import outcome, planted


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One Ray on this machine for all tests of a module."""
    from distsparse.launch.session import connected

    with connected(num_cpus=2):
        yield


@pytest.fixture(scope="session")
def two_undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from distsparse.launch import run

    root = tmp_path_factory.mktemp("undisturbed")
    config = planted("none", root, **{"launch.workers": 2})
    run(config, root)
    return outcome(root, config)
