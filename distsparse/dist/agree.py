"""Verify that every rank holds the same topology."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from distsparse.dist.comm import Comm


class TopologyMismatch(RuntimeError):  # noqa: N818  the event's name, as a reader of the log looks for it
    """Ranks hold different masks; raised on every rank."""


def verify(comm: Comm, layers: Sequence[str], digests: Tensor, *, step: int) -> None:
    """Raise on *all* ranks if any layer's digest differs between ranks. All ranks must call it.

    Args:
        comm: the collectives.
        layers: layer names, in the same order on all ranks.
        digests: int64 (num_layers,), this rank's mask digests.
        step: the optimizer step, for the message.

    Raises:
        TopologyMismatch: naming step, layers, and the ranks that differ from the majority.
    """
    if comm.world_size == 1:
        return
    gathered = torch.stack(comm.gather(digests)).tolist()
    problems = []
    for position, layer in enumerate(layers):
        values = [row[position] for row in gathered]
        # With a tie (two ranks) the lowest rank counts as the majority, on every rank alike.
        majority = Counter(values).most_common(1)[0][0]
        if odd := [rank for rank, value in enumerate(values) if value != majority]:
            problems.append(f"layer {layer!r}: rank(s) {odd} differ from the others")
    if problems:
        raise TopologyMismatch(f"topologies differ between ranks at step {step}: " + "; ".join(problems))
