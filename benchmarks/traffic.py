"""Bytes and time of a data-parallel step over a slow link: gradients of active weights alone, or of all.

sudo python benchmarks/traffic.py [--mbit 1000 100] [--ranks 2 4] [--markdown benchmarks/traffic.md]

Each rank lives in a network namespace of its own, joined by a bridge whose ports are shaped to the link's
rate (Linux, root, iproute2). Bytes are what the kernel counted on the rank's interface. Both sides run in
turn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDTH, DEPTH, BATCH, DELTA_T = 1024, 4, 1, 100
BUCKET_MB = 1
"""so that a layer's gradients leave while the next layer's are computed, on both sides"""
SPARSITIES = (0.8, 0.9, 0.95, 0.98)
INTERFACE = "eth0"


def main() -> int:
    """Measure every combination and print a table; 0 also where the machine cannot do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mbit", type=int, nargs="+", default=[1000, 100])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(json.loads(args.worker))
        return 0
    if reason := impossible():
        print(f"skipped: {reason}")
        return 0
    lines = HEADER
    for num_ranks in args.ranks:
        for mbit in args.mbit:
            with link(num_ranks, mbit):
                for row in measure(num_ranks, mbit, args.rounds):
                    lines.append(row)
                    print(row, flush=True)
    text = "\n".join(lines) + "\n"
    if args.markdown:
        args.markdown.write_text(text)
    return 0


HEADER = [
    "| ranks | link | method | sparsity | MB per step | of bound | dense MB | step | dense step | speed-up |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def impossible() -> str | None:
    """Return why this machine cannot shape a link, if so."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)} (iproute2)" if missing else None


def run(command: str) -> None:
    """Run a command."""
    subprocess.run(command.split(), check=True, capture_output=True)


@contextmanager
def link(num_ranks: int, mbit: int) -> Iterator[None]:
    """Give a namespace to each rank, on one bridge; each direction of each port has the given rate."""
    names = [f"distsparse{rank}" for rank in range(num_ranks)]
    rate = f"root tbf rate {mbit}mbit burst {max(mbit // 4, 32)}kb latency 100ms"
    remove_link(names)  # what a killed run left
    try:
        run("ip link add distsparse type bridge")
        run("ip link set distsparse up")
        for rank, name in enumerate(names):
            run(f"ip netns add {name}")
            run(f"ip link add {name} type veth peer name {INTERFACE} netns {name}")
            run(f"ip link set {name} master distsparse up")
            run(f"ip -n {name} addr add 10.213.0.{rank + 1}/24 dev {INTERFACE}")
            run(f"ip -n {name} link set {INTERFACE} up")
            run(f"ip -n {name} link set lo up")
            run(f"tc qdisc add dev {name} {rate}")
            run(f"tc -n {name} qdisc add dev {INTERFACE} {rate}")
        yield
    finally:
        remove_link(names)


def remove_link(names: list[str]) -> None:
    """Remove what there is of a link. Ports first: a namespace takes its own along only some time later."""
    for command in (
        *(f"ip link del {name}" for name in names),
        *(f"ip netns del {name}" for name in names),
        "ip link del distsparse",
    ):
        subprocess.run(command.split(), capture_output=True)


def measure(num_ranks: int, mbit: int, rounds: int) -> Iterator[str]:
    """Start a process in each namespace and turn rank 0's results into rows."""
    environment = os.environ | {
        "MASTER_ADDR": "10.213.0.1",
        "MASTER_PORT": "29571",
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": "1",
    }
    processes = []
    for rank in range(num_ranks):
        values = json.dumps({"rank": rank, "num_ranks": num_ranks, "rounds": rounds})
        command = ["ip", "netns", "exec", f"distsparse{rank}", sys.executable, __file__, "--worker", values]
        out = subprocess.PIPE if rank == 0 else None
        processes.append(subprocess.Popen(command, env=environment, stdout=out, text=True))
    first = processes[0].stdout
    assert first is not None
    for line in first:
        yield as_row(json.loads(line), num_ranks, mbit)
    if any(process.wait() for process in processes):
        raise SystemExit("a rank failed")


def as_row(found: dict[str, Any], num_ranks: int, mbit: int) -> str:
    """Return a Markdown row; the bound is 1.1 times what the active entries and the updates need."""
    share = 2 * (num_ranks - 1) / num_ranks
    dense_part = 4 * found["num_weights"] / DELTA_T if found["method"] == "rigl" else 0
    bound = 1.1 * share * (4 * found["num_sent"] + dense_part)
    cells = (
        num_ranks,
        f"{mbit} Mbit/s",
        found["method"],
        f"{found['sparsity']:g}",
        f"{found['bytes'] / 1e6:.3f}",
        f"{found['bytes'] / bound:.2f}",
        f"{found['dense_bytes'] / 1e6:.2f}",
        f"{1e3 * found['seconds']:.1f} ms",
        f"{1e3 * found['dense_seconds']:.1f} ms",
        f"{found['dense_seconds'] / found['seconds']:.1f}",
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def work(values: dict[str, Any]) -> None:
    """Measure as one rank; rank 0 prints a JSON line for each method and sparsity."""
    import torch
    from torch import distributed

    from distsparse.dist import leave

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=values["rank"], world_size=values["num_ranks"])
    compare(values["rank"], values["rounds"])
    distributed.barrier()
    leave()


def compare(rank: int, num_rounds: int) -> None:
    """Train each sparse model beside the dense one, on all ranks."""
    import torch
    from torch import distributed, nn
    from torch.nn.parallel import DistributedDataParallel

    from distsparse import Sparsifier
    from distsparse.dist import reduce_active
    from distsparse.methods import rigl, set_

    inputs = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(rank))

    class Side:
        """A model that trains with a sparsifier and its hook, or densely."""

        def __init__(self, method: Any) -> None:
            torch.manual_seed(0)
            layers = [nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)]
            self.model = DistributedDataParallel(
                nn.Sequential(*layers), bucket_cap_mb=BUCKET_MB, gradient_as_bucket_view=True
            )
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, fused=True)
            self.sparsifier = None
            if method is not None:
                self.sparsifier = Sparsifier.attach(
                    method, self.model, self.optimizer, total_steps=100 * DELTA_T, seed=0
                )
                self.sparsifier.initialize()
                reduce_active(self.model, self.sparsifier)

        def step(self) -> None:
            self.optimizer.zero_grad()
            self.model(inputs).square().mean().backward()
            event = self.sparsifier.step() if self.sparsifier else None
            if not (event and event.skip_optimizer_step):
                self.optimizer.step()

        def timed(self, num_steps: int) -> tuple[float, float]:
            """Return seconds and sent bytes of a step, over some steps."""
            distributed.barrier()
            start, bytes_before = time.perf_counter(), sent_bytes()
            for _ in range(num_steps):
                self.step()
            return (time.perf_counter() - start) / num_steps, (sent_bytes() - bytes_before) / num_steps

    dense = Side(None)
    dense.timed(3)
    for sparsity in SPARSITIES:
        for name, method in (("rigl", rigl), ("set", set_)):
            sparse = Side(method(sparsity=sparsity, delta_T=DELTA_T))
            assert sparse.sparsifier is not None
            sparse.timed(DELTA_T // 2)  # so that each window of delta_T steps has its update in the middle
            ours, theirs = [], []
            for _ in range(num_rounds):
                ours.append(sparse.timed(DELTA_T))
                theirs.append(dense.timed(10))
            topology = sparse.sparsifier.topology
            num_parameters = sum(p.numel() for p in sparse.model.parameters())
            inactive = topology.num_weights - sum(topology.nnz(layer) for layer in topology.masks)
            if rank == 0:
                result = {
                    "method": name,
                    "sparsity": sparsity,
                    "num_weights": topology.num_weights,
                    "num_sent": num_parameters - inactive,
                    "seconds": statistics.median(seconds for seconds, _ in ours),
                    "bytes": statistics.median(sent for _, sent in ours),
                    "dense_seconds": statistics.median(seconds for seconds, _ in theirs),
                    "dense_bytes": statistics.median(sent for _, sent in theirs),
                }
                print(json.dumps(result), flush=True)


def sent_bytes() -> int:
    """Return the bytes that the kernel has sent on this rank's interface."""
    return int(Path(f"/sys/class/net/{INTERFACE}/statistics/tx_bytes").read_text())


if __name__ == "__main__":
    sys.exit(main())
