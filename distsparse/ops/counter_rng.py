"""Counter-based randomness: a value is a function of a key and an index, so there is no generator state.

The same on any rank, shard, world size and device, and after a resume. The mixing function is SplitMix64
(Steele, Lea, Flood, 2014, "Fast splittable pseudorandom number generators", section 4).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor


def signed(value: int) -> int:
    """Return the int64 whose bits are those of a 64-bit unsigned integer."""
    return value - (1 << 64) if value >= 1 << 63 else value


_CACHED = 1 << 14
"""int64 values of which a few fit into a core's cache"""

_GOLDEN = signed(0x9E3779B97F4A7C15)
_MIX_1 = signed(0xBF58476D1CE4E5B9)
_MIX_2 = signed(0x94D049BB133111EB)


def key(*parts: str | int) -> int:
    """Return a signed 64-bit key of parts such as (seed, step, layer, "grow"); equal on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def key_from(key: int, first: int) -> int:
    """Return the key whose :func:`bits` at an index are those of ``key`` at ``first`` + index."""
    return signed((key + first * _GOLDEN) % (1 << 64))


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's ``>>`` on int64 copies the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def mix(value: Tensor) -> Tensor:
    """Return SplitMix64's finalizer of int64 values, elementwise: a bijection of 64-bit words."""
    return _mix_in_numpy(value) if value.device.type == "cpu" else _mix_in_torch(value)


def _mix_in_torch(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def _mix_in_numpy(value: Tensor) -> Tensor:
    """The same in two thirds of the operations, for numpy has unsigned words, and in place."""
    words = value.numpy().reshape(-1).view(np.uint64)
    shifted = words >> 30
    mixed = words ^ shifted
    for bits_down, factor in ((27, _MIX_1), (31, _MIX_2)):
        mixed *= np.uint64(factor % (1 << 64))
        mixed ^= np.right_shift(mixed, bits_down, out=shifted)
    return torch.from_numpy(mixed.view(np.int64)).reshape(value.shape)


def bits(key: int, index: Tensor) -> Tensor:
    """Return 64 random bits as int64 at each int64 index: distinct for distinct indices."""
    return mix(index * _GOLDEN + key)


def bits_between(key: int, start: int, stop: int, device: torch.device) -> Tensor:
    """Return 64 random bits as int64 at the indices start … stop-1."""
    n = stop - start
    found = torch.arange(start, stop, device=device)
    # Some twelve operations: on a CPU their results in between stay in the cache.
    size = _CACHED if device.type == "cpu" else max(n, 1)
    for first in range(0, n, size):
        part = found[first : first + size]
        part.copy_(bits(key, part))
    return found


def uniform(key: int, index: Tensor) -> Tensor:
    """Return float64 values in [0, 1) with 53 random bits at each int64 index."""
    return _shift_right(bits(key, index), 11).to(torch.float64) * 2.0**-53


def normal(key: int, index: Tensor) -> Tensor:
    """Return standard normal float64 values at each int64 index, by Box and Muller's transform.

    From two words of the sequence each, 2 · index and 2 · index + 1, so that an index below 2^62 has its own.
    """
    radius = torch.sqrt(-2 * torch.log1p(-uniform(key, 2 * index)))
    return radius * torch.cos(2 * math.pi * uniform(key, 2 * index + 1))


def permutation(key: int, n: int) -> Tensor:
    """Return a random permutation of 0 … n-1 as int64."""
    return torch.argsort(bits(key, torch.arange(n)), stable=True)
