"""Decoding images with Pillow in threads, into one uint8 tensor."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Modes that Pillow turns into 8-bit grey or colour without loss of range; it would clip 16- and 32-bit ones.
CHANNEL_MODE = {"1": "L", "L": "L", "LA": "L"} | dict.fromkeys(
    ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"), "RGB"
)
# Below this size most of the work is Python's and holds the interpreter's lock: more threads are slower.
_THREADED_PIXELS = 64 * 64
_CHUNK = 512


def image_shape(images: Tensor) -> tuple[int, int, int]:
    """Return (channels, height, width) of a batch of images."""
    _, channels, height, width = images.shape
    return channels, height, width


def decode_images(
    file: Path, encoded: Any, rows: Sequence[int], *, shape: tuple[int, int, int] | None = None
) -> Tensor:
    """Return the images at ``rows`` as uint8 (len(rows), C, H, W): C is 1 for grey images, 3 for colour.

    Args:
        file: named in messages.
        encoded: Arrow binary column of encoded images.
        rows: at least one row of it.
        shape: (C, H, W) that every image must have; the first image decides if it is None. A grey image among
            colour ones is repeated over the channels.

    Raises:
        ValueError: naming the row of an image that cannot be decoded or has another shape.
    """
    if shape is None:
        shape = _decode(file, rows[0], encoded[rows[0]].as_py(), None).shape
    images = np.empty((len(rows), *shape), np.uint8)

    def fill(start: int) -> None:
        for position in range(start, min(start + _CHUNK, len(rows))):
            row = rows[position]
            images[position] = _decode(file, row, encoded[row].as_py(), shape)

    num_threads = os.cpu_count() if shape[1] * shape[2] >= _THREADED_PIXELS else 1
    with ThreadPoolExecutor(num_threads) as pool:
        _finish(pool.map(fill, range(0, len(rows), _CHUNK)))
    return torch.from_numpy(images)


def _finish(results: Iterable[None]) -> None:
    """Wait for every chunk; the first error in row order is raised."""
    for _ in results:
        pass


def _decode(
    file: Path, row: int, data: bytes | None, shape: tuple[int, int, int] | None
) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Return one image as (C, H, W), checked against the shape if there is one."""
    if data is None:
        raise ValueError(f"{file}: row {row} has no image bytes")
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = CHANNEL_MODE.get(image.mode)
            if mode is None:
                raise ValueError(f"pixel mode {image.mode!r}; allowed: 8-bit grey or colour")
            if shape is not None and mode == "L" and shape[0] == 3:
                mode = "RGB"
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: row {row} cannot be decoded: {str(error).partition(chr(10))[0]}") from None
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if shape is not None and channels_first.shape != shape:
        raise ValueError(
            f"{file}: row {row} is (channels, height, width) = {channels_first.shape}, "
            f"the first image is {shape}; all must be equal"
        )
    return channels_first
