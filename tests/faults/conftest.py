from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One Ray on this machine for all tests of a module."""
    from distsparse.launch.session import connected

    with connected(num_cpus=2):
        yield
