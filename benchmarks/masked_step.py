"""Time of a sparsified training step without a mask update relative to the dense one, on CPU or CUDA.

python benchmarks/masked_step.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from distsparse import Sparsifier, models
from distsparse.export import describe
from distsparse.methods import rigl

CASES = (("mlp", (1, 28, 28), 100, {}), ("resnet20", (3, 32, 32), 64, {}), ("resnet18", (3, 32, 32), 64, {}))


def main() -> None:
    """Measure every case, the two sides in turn, and print a Markdown table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = describe()
    print(
        f"{machine['accelerator'] or machine['cpu']}, {torch.get_num_threads()} CPU threads, "
        f"torch {machine['torch_version']}; medians of {rounds} rounds\n"
    )
    print("| model | batch | dense step ms | sparse step ms | ratio |")
    print("|---|---|---|---|---|")
    for name, shape, batch_size, params in CASES:
        dense = training_step(name, shape, batch_size, params, device, sparse=False)
        sparse = training_step(name, shape, batch_size, params, device, sparse=True)
        times: dict[Callable[[], None], list[float]] = {dense: [], sparse: []}
        for round_ in range(rounds + 2):
            for function, seconds in times.items():
                elapsed = timed(function, device)
                if round_ >= 2:
                    seconds.append(elapsed)
        medians = [1e3 * statistics.median(seconds) for seconds in times.values()]
        print(
            f"| {name} | {batch_size} | {medians[0]:.2f} | {medians[1]:.2f} | {medians[1] / medians[0]:.3f} |"
        )


def training_step(
    name: str,
    shape: tuple[int, int, int],
    batch_size: int,
    params: dict,
    device: torch.device,
    *,
    sparse: bool,
) -> Callable[[], None]:
    """Return a step with SGD and momentum on a fixed batch."""
    torch.manual_seed(0)
    model = models.build(name, shape, 10, params).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    inputs = torch.randn(batch_size, *shape, device=device)
    labels = torch.randint(10, (batch_size,), device=device)
    sparsifier = None
    if sparse:
        method = rigl(sparsity=0.9, delta_T=100, skip_optimizer_step=False)
        sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=1000, seed=0)
        sparsifier.initialize()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        if sparsifier is not None:
            sparsifier._step = 1  # no update: mask_update.py times these
            sparsifier.step()
        optimizer.step()

    return step


def timed(function: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
