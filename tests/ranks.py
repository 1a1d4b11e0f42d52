"""Real processes of a gloo group, as a runner starts them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from distsparse.dist import leave

Json = Any


def run_ranks(scenarios: Callable[..., Json], num_ranks: int, *arguments: Any) -> list[Json]:
    """Call a module's function, with the rank and the arguments, in so many processes; return the results."""
    with tempfile.TemporaryDirectory() as folder:
        settings = (scenarios, num_ranks, Path(folder), arguments)
        torch.multiprocessing.spawn(_rank_main, settings, nprocs=num_ranks)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(num_ranks)]


def gloo_threads() -> list[str]:
    """Return the names of the threads that a gloo group of this process has; on Linux."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    return [name for name in names if "gloo" in name]


def _rank_main(
    rank: int, scenarios: Callable[..., Json], num_ranks: int, folder: Path, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    # For accelerate to read.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
    distributed.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=num_ranks)
    (folder / f"{rank}.json").write_text(json.dumps(scenarios(rank, *arguments)))
    if distributed.is_initialized():
        distributed.barrier()
        leave()
