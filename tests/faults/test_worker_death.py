"""SIGKILL of one of two workers: all begin again from the last checkpoint, and end as if undisturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parts import equal, tiny, untimed

from distsparse.config import RunConfig
from distsparse.core import load_network
from distsparse.results import read_trial

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def config_of(fault: str, marker: Path, **more: Any) -> RunConfig:
    """24 steps, an update every 3 and a checkpoint every 5."""
    model = {"name": "plants:faulty", "fault": fault, "marker": str(marker), **more}
    return tiny(
        {
            "model": model,
            "optimizer.momentum": 0.9,
            "checkpoint.every_steps": 5,
            "launch.workers": 2,
        }
    )


def run(config: RunConfig, root: Path) -> dict[str, Any]:
    from distsparse.launch.trainer import run_on_workers

    return run_on_workers(config, root, verbose=True)


def outcome(row: dict[str, Any], root: Path) -> tuple[Any, ...]:
    """All that a run leaves, but for its times."""
    tables = [
        untimed(read_trial(root, study="default", trial=row["trial"], table=table) or [])
        for table in ("steps", "rewires", "layers")
    ]
    for table in tables:
        for line in table:
            line.pop("trial")
    return (*load_network(Path(row["checkpoint"])), tables)


@pytest.fixture(scope="module")
def undisturbed(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    root = tmp_path_factory.mktemp("undisturbed")
    config = config_of("none", root / "marker")
    run(config, root)
    (row,) = read_trial(root, study="default", trial=config.key) or []
    assert row["status"] == "completed", row["error"]
    return outcome(row, root)


@pytest.mark.parametrize(
    ("fault", "rank"), [("forward", 1), ("all-reduce", 1), ("update", 0), ("checkpoint", 0)]
)
def test_bit_for_bit(
    fault: str, rank: int, undisturbed: tuple[Any, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    config = config_of(fault, marker, rank=rank)
    run(config, tmp_path)
    output = capfd.readouterr().out
    print(output)
    assert marker.exists(), "it was not killed"
    (row,) = read_trial(tmp_path, study="default", trial=config.key) or []
    assert row["status"] == "completed", row["error"]
    weights, masks, tables = outcome(row, tmp_path)
    assert equal(weights, undisturbed[0])
    assert equal(masks, undisturbed[1])
    assert str(tables) == str(undisturbed[2])
    died, resumed = [line for line in output.splitlines() if "restart" in line or "resumed" in line]
    assert died.endswith("restart 1 of 3")
    assert "orker" in died
    assert resumed == "resumed at step 5 of 24"
