"""Data sets by name, and batches of them."""

from distsparse.data.batches import augment, augmentation_key, batch, epoch_order
from distsparse.data.dataset import Dataset, Split
from distsparse.data.digits import digits
from distsparse.data.images import images
from distsparse.data.registry import build, datasets

__all__ = [
    "Dataset",
    "Split",
    "augment",
    "augmentation_key",
    "batch",
    "build",
    "datasets",
    "digits",
    "epoch_order",
    "images",
]
