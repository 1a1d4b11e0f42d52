"""Another run's topology and weights, as its checkpoint holds them: a lottery ticket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

NETWORK = "network.safetensors"
"""file of a checkpoint with the weights, the buffers, and the masks"""
MASK = "mask."
"""before a layer's name, in that file"""

Start = Literal["initial", "trained", "random"]


@dataclass(frozen=True)
class Ticket:
    """A run's checkpoint, and which weights a new run starts from.

    ``initial`` are those that the run itself started (or, after pruning, was rewound to), ``trained`` those
    of the checkpoint, ``random`` those that the new run's own seed gives.
    """

    folder: Path
    start: Start


def find_checkpoint(source: str) -> Path:
    """Return the newest checkpoint of a trial's folder, or the folder itself if it is a checkpoint.

    Raises:
        ValueError: there is none.
    """
    folder = Path(source).expanduser().resolve()
    candidates = [folder, *sorted([*folder.glob("step-*"), *folder.glob("checkpoint_*")], reverse=True)]
    for candidate in candidates:
        if (candidate / NETWORK).is_file():
            return candidate
    raise ValueError(f"source = {source!r}: must be a trial's folder of checkpoints, or one checkpoint")


def load_network(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (state dict, masks) of a checkpoint; masks are bool (rows, cols) by layer.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        tensors = load_file(folder / NETWORK)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint {folder / NETWORK} cannot be read: {error}") from None
    masks = {name.removeprefix(MASK): t for name, t in tensors.items() if name.startswith(MASK)}
    return {name: t for name, t in tensors.items() if not name.startswith(MASK)}, masks
