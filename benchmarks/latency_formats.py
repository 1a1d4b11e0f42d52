"""Measure dense against CSR inference of LeNet-300-100 and of one Linear 3072 -> 768, on one thread.

``python benchmarks/latency_formats.py`` prints the table and writes it to latency_formats.md beside this
file. The topologies are random and uniform.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from distsparse.export import Latency, compare, describe  # noqa: E402

SPARSITIES = (0.9, 0.95, 0.98, 0.99)
BATCH_SIZES = (1, 64)
HEADER = """\
| network | sparsity | batch | dense ms (p10 to p90) | CSR ms (p10 to p90) | speed-up | 1 / (1 - s) |
|---|---|---|---|---|---|---|
"""


def lenet_300_100() -> nn.Module:
    """Build the three linear layers of LeNet-300-100 with ReLU between them."""
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def sparsify_(model: nn.Module, sparsity: float) -> nn.Module:
    """Zero an exact, random fraction of every weight matrix."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.view(-1)[order[: round(sparsity * parameter.numel())]] = 0
    return model


def rows(name: str, sparsity: float, measured: dict[tuple[str, int], Latency]) -> str:
    """Return one table row per batch size."""
    lines = []
    for batch_size in BATCH_SIZES:
        dense, csr = measured["dense", batch_size], measured["csr", batch_size]
        lines.append(
            f"| {name} | {sparsity:.0%} | {batch_size} | {cell(dense)} | {cell(csr)} "
            f"| {dense.median_ms / csr.median_ms:.2f} | {1 / (1 - sparsity):.0f} |\n"
        )
    return "".join(lines)


def cell(latency: Latency) -> str:
    """Return a latency's median and its spread, which is wide where other processes interrupted."""
    return f"{latency.median_ms:.4f} ({latency.p10_ms:.4f} to {latency.p90_ms:.4f})"


def main() -> None:
    """Measure, print the table and write it."""
    networks = {
        "LeNet-300-100": (lenet_300_100, (784,)),
        "Linear 3072 -> 768": (lambda: nn.Linear(3072, 768), (3072,)),
    }
    table = "".join(
        rows(
            name,
            sparsity,
            compare(
                sparsify_(build(), sparsity),
                input_shape,
                batch_sizes=BATCH_SIZES,
                num_threads=1,
                budget_s=1.0,
            ),
        )
        for name, (build, input_shape) in networks.items()
        for sparsity in SPARSITIES
    )
    machine = describe()
    report = (
        "# Dense against CSR inference\n\n"
        f"{machine['cpu']}, one thread, fp32, torch {machine['torch_version']}. Medians; the formats take\n"
        "turns. 1 / (1 - s) is the ratio of multiplications, what an ideal kernel would reach. Reproduce\n"
        "on a quiet machine: `python benchmarks/latency_formats.py`.\n\n" + HEADER + table
    )
    print(report)
    (ROOT / "benchmarks" / "latency_formats.md").write_text(report)


if __name__ == "__main__":
    main()
