"""accelerate, set up for the processes that the runner gave us."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from distsparse.config import Launch, Train

_DEFAULT_NUM_THREADS = torch.get_num_threads()


def make_accelerator(train: Train, launch: Launch, *, world_size: int) -> Accelerator:
    """Return an accelerator over exactly ``world_size`` processes.

    Raises:
        RuntimeError: accelerate sees another number of processes (a bare ``Accelerator()`` in a CPU worker
            silently trains alone, and every worker would see all batches).
    """
    torch.set_num_threads(launch.num_threads or _DEFAULT_NUM_THREADS)
    # A reused process keeps accelerate's singletons from the trial before.
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=train.precision if train.precision in ("bf16", "fp16") else "no",
        gradient_accumulation_steps=train.accumulation,
    )
    if accelerator.num_processes != world_size:
        raise RuntimeError(
            f"accelerate runs {accelerator.num_processes} process(es), but the run has {world_size} workers"
        )
    return accelerator
