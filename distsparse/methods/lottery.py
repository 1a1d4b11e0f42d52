"""Lottery tickets: another run's topology, trained anew (Frankle and Carbin 2019, arXiv:1803.03635)."""

from __future__ import annotations

from distsparse.core import Method, Ticket, adopt, find_checkpoint, load_network, shuffle
from distsparse.methods.params import ShuffleMasks, Source, TicketStart
from distsparse.methods.registry import method
from distsparse.ops.schedule import constant


@method("lottery")
def lottery(*, source: Source, start: TicketStart = "initial", shuffle_masks: ShuffleMasks = False) -> Method:
    """Freeze the topology that another run found, and train it from that run's initial weights.

    ``start`` random and ``shuffle_masks`` are the controls; ``start`` trained fine-tunes the other network.
    The initial weights of a run that was rewound are those it was rewound to. In one's own loop the masks are
    taken over, and loading the weights is the caller's part.

    Raises:
        ValueError: ``source`` is no trial's folder of checkpoints, or its file is damaged.
    """
    folder = find_checkpoint(source)
    _, masks = load_network(folder)
    if not masks:
        raise ValueError(f"source = {source!r}: the checkpoint has no masks")
    inactive = sum(int((~mask).sum()) for mask in masks.values())
    return Method(
        init=(adopt(masks), *([shuffle()] if shuffle_masks else [])),
        sparsity=constant(inactive / sum(mask.numel() for mask in masks.values())),
        ticket=Ticket(folder, start),
    )
