"""Peak memory of a process whose model FSDP2 has sharded: sparse training beside dense.

python benchmarks/sharded_memory.py [--ranks 1 2 4] [--width 1024] [--layers 12] [--methods rigl set gmp]

What Linux counts as resident at the peak of training, less what was so before the model was built: weights,
gradients, momentum, masks, gathered layers, activations, the first topology and two updates. Before that
every process builds the whole model once, sparse or dense.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed, nn

from distsparse import Sparsifier
from distsparse.core import Method
from distsparse.dist import leave
from distsparse.methods import gmp, rigl, set_
from distsparse.train.parallel import shard

BATCH, STEPS, DELTA_T = 32, 5, 2
METHODS: dict[str, Callable[[], Method]] = {
    "rigl": lambda: rigl(sparsity=0.9, delta_T=DELTA_T, T_end=1.0),
    "set": lambda: set_(sparsity=0.9, delta_T=DELTA_T, T_end=1.0),
    "gmp": lambda: gmp(sparsity=0.9, delta_T=DELTA_T, T_end=1.0, allocation="global_magnitude"),
}


def main() -> None:
    """Train with each method on each number of processes, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    # Each tensor in pages of its own, which go back when it is freed: the C library would keep them.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    methods = ["dense", *arguments.methods]
    peaks = {
        num: {name: peak_bytes(name, num, arguments.width, arguments.layers) for name in methods}
        for num in arguments.ranks
    }
    first = arguments.ranks[0]
    num_weights = arguments.layers * arguments.width**2
    print(f"{num_weights:,} weights; peak bytes a weight (of that on {first}, relative to dense's)\n")
    print("| method | " + " | ".join(f"{num} process(es)" for num in arguments.ranks) + " |")
    print("|---|" + "---|" * len(arguments.ranks))
    for name in methods:
        cells = []
        for num in arguments.ranks:
            share, of_dense = (peaks[num][n] / peaks[first][n] for n in (name, "dense"))
            cells.append(f"{peaks[num][name] / num_weights:.2f} ({share:.3f}, {share / of_dense:.2f})")
        print(f"| {name} | " + " | ".join(cells) + " |")


def peak_bytes(name: str, num_ranks: int, width: int, layers: int) -> int:
    """Return a method's peak, of the process that has most; each is a new one."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank_main, (num_ranks, name, width, layers, folder), nprocs=num_ranks)
        return max(int((Path(folder) / str(rank)).read_text()) for rank in range(num_ranks))


def rank_main(rank: int, num_ranks: int, name: str, width: int, layers: int, folder: str) -> None:
    """Measure in one process of a gloo group."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=num_ranks)
    (Path(folder) / str(rank)).write_text(str(own_peak_bytes(name, width, layers)))
    distributed.barrier()
    leave()


def own_peak_bytes(name: str, width: int, layers: int) -> int:
    """Return how far the resident memory of this process rises above what it is before."""
    train(sharded(width, 2), METHODS.get(name))  # what is imported and compiled at first use is no method's
    before = resident_bytes("VmRSS")
    model = sharded(width, layers)
    ctypes.CDLL(None).malloc_trim(0)  # the whole model, which every process builds before it is sharded
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    train(model, METHODS.get(name))
    return resident_bytes("VmHWM") - before


def sharded(width: int, layers: int) -> nn.Module:
    """Return linear layers, sharded over all processes."""
    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width, bias=False), nn.ReLU())]
    return shard(nn.Sequential(*parts), torch.device("cpu"))


def resident_bytes(field: str) -> int:
    """Return this process's resident memory, or its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def train(model: nn.Module, make: Callable[[], Method] | None) -> None:
    """Take STEPS optimizer steps, with two updates where there is a method."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = None
    if make is not None:
        sparsifier = Sparsifier.attach(make(), model, optimizer, total_steps=STEPS, seed=0)
        sparsifier.initialize()
    width = next(model.parameters()).shape[1]
    inputs = torch.randn(BATCH // distributed.get_world_size(), width)
    for _ in range(STEPS):
        model(inputs).square().mean().backward()
        event = sparsifier.step() if sparsifier is not None else None
        if not (event and event.skip_optimizer_step):
            optimizer.step()
        optimizer.zero_grad()
    if sparsifier is not None:
        assert sparsifier.statistics.num_updates == 2


if __name__ == "__main__":
    main()
