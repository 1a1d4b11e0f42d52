"""Passes over a layer's entries, compiled for CPUs where numba is installed (the extra ``fast``).

Each does in one pass, vectorized, what a chain of tensor operations does in several, and returns exactly the
same. A caller asks :func:`usable` and has another way, which is also a GPU's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distsparse.ops import counter_rng
from distsparse.ops.threads import in_parts

LEAST = 1 << 14
"""entries below which a compiled pass gains nothing that is worth loading the compiler for"""

_ENDS: dict[torch.dtype, tuple[Any, Any]] = {
    torch.float32: (np.float32(-np.inf), np.float32(np.inf)),
    torch.float64: (-np.inf, np.inf),
    torch.int64: (np.iinfo(np.int64).min, np.iinfo(np.int64).max),
}
"""what every score that a pass compares lies between"""
_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@cache
def installed() -> bool:
    """Return whether numba can be imported."""
    return find_spec("numba") is not None


def usable(*tensors: Tensor) -> bool:
    """Return whether tensors of as many entries as the first lie in a CPU's memory, row-major and large."""
    large = tensors[0].numel() >= LEAST and installed()
    return large and all(tensor.is_cpu and tensor.is_contiguous() for tensor in tensors)


def ordered(values: Tensor) -> bool:
    """Return whether values are of a kind that :func:`split` compares."""
    return values.dtype in _ENDS


def comparable(values: Tensor) -> bool:
    """Return whether values are :func:`ordered`, and lie one behind the other."""
    return ordered(values) and values.is_contiguous()


def split(
    values: Tensor, flags: Tensor, low: Tensor, high: Tensor, *, magnitudes: bool, fill: bool
) -> tuple[Tensor, int, Tensor, Tensor]:
    """Divide candidates by two bounds on their scores, which are flat values or their magnitudes.

    Args:
        values: flat and :func:`comparable`.
        flags: bool, flat; the candidates, or with ``fill`` all others.
        low: 0-dim.
        high: 0-dim.
        magnitudes: the scores are ``|values|``.
        fill: what is flagged is chosen as well.

    Returns:
        flags of what is chosen, the candidates above ``high``, and their number; index (int64) and score of
        those that are neither above it nor below ``low``, NaN among them.
    """
    return _split(values.numpy(), values.dtype, flags, low, high, magnitudes, fill)


def num_above(values: Tensor, flags: Tensor, low: Tensor, high: Tensor) -> tuple[int, Tensor]:
    """Return how many flagged magnitudes are above ``high``, and those neither above it nor below ``low``."""
    room = _room(len(flags))
    least, most = (value.to(values.dtype).numpy()[()] for value in (low, high))
    while True:
        found = torch.empty(room, dtype=values.dtype)
        num, num_chosen = _loops().num_above(values.numpy(), _bytes(flags), least, most, found.numpy())
        if num <= room:
            return num_chosen, found[:num]
        room = num


def split_random(
    key: int, flags: Tensor, low: Tensor, high: Tensor, *, fill: bool
) -> tuple[Tensor, int, Tensor, Tensor]:
    """Return what :func:`split` does of the random bits of a key at each place, see ``counter_rng.bits``."""
    return _split(_word(key), torch.int64, flags, low, high, False, fill)


def best_magnitudes(values: Tensor, flags: Tensor, num_flagged: int, k: int, *, fill: bool) -> Tensor | None:
    """Return the ``k`` candidates of the largest magnitudes, and with ``fill`` what is flagged.

    None where a quick look does not decide it: at k = 0 or all, with a NaN, or if the sample was misleading.
    """
    return _best(values.numpy(), values.dtype, flags, num_flagged, k, True, fill)


def best_random(key: int, flags: Tensor, num_flagged: int, k: int, *, fill: bool) -> Tensor | None:
    """Return what :func:`best_magnitudes` does by the random bits of a key at each place."""
    return _best(_word(key), torch.int64, flags, num_flagged, k, False, fill)


def sample_magnitudes(values: Tensor, flags: Tensor, num: int, step: int, *, fill: bool) -> Tensor:
    """Return the magnitudes of those of ``num`` entries, ``step`` apart and around, that are candidates."""
    return _sample(values.numpy(), values.dtype, flags, num, step, True, fill)


def sample_random(key: int, flags: Tensor, num: int, step: int, *, fill: bool) -> Tensor:
    """Return the random bits of a key at those of ``num`` places that are candidates."""
    return _sample(_word(key), torch.int64, flags, num, step, False, fill)


def kth_largest(values: Tensor, k: int) -> Tensor | None:
    """Return the ``k``-th largest of flat values as a 0-dim tensor; None where bins do not tell it."""
    known, found = _loops().kth_largest(values.numpy(), k)
    return values.new_tensor(found) if known else None


def zero_inactive(mask: Tensor, tensors: Sequence[Tensor]) -> None:
    """Set entries of tensors to exactly +0 where a bool mask of their shape is False, NaN included.

    Their numbers are of one size in bytes.
    """
    loop, flags, bits = _loops().keep, _bytes(mask), tuple(map(_integers, tensors))
    in_parts(
        len(flags), lambda first, stop: loop(flags[first:stop], tuple(each[first:stop] for each in bits))
    )


def spread(values: Tensor, index: Tensor, into: Tensor) -> None:
    """Write flat values at ascending int32 or int64 indices of a flat tensor, and zeros everywhere else.

    Of one dtype that is :func:`ordered`.
    """
    _loops().spread(values.numpy(), index.numpy(), into.numpy())


def pack_beside(mask: Tensor, before: Tensor, first_word: int) -> tuple[Tensor, Tensor, int, int, int]:
    """Pack a mask and count, in itself, in another one and in what differs, (rows, whole words of flags).

    Returns:
        words as of ``ops.packed.pack``; their digest, the first one's place being ``first_word``; flags that
        are set, that were set, and that differ.
    """
    words = torch.empty(mask.shape[0], mask.shape[1] // 64, dtype=torch.int64)
    packed = words.numpy().reshape(-1).view(np.uint64)
    num, num_before, num_changed, digest = _loops().pack(
        _bytes(mask), _bytes(before), packed, np.uint64(first_word)
    )
    return words, torch.tensor(counter_rng.signed(int(digest))), int(num), int(num_before), int(num_changed)


def unpack(words: Tensor) -> Tensor:
    """Return the flags of words, 64 each, as bool (rows, 64 * words in a row)."""
    flags = torch.empty(words.shape[0], 64 * words.shape[1], dtype=torch.bool)
    _loops().unpack(words.numpy().reshape(-1).view(np.uint64), _bytes(flags))
    return flags


@cache
def _loops() -> Any:
    """Load the compiler when it is first needed: it takes a third of torch's own time to import."""
    from distsparse.ops.kernels import loops

    return loops


def _word(key: int) -> Any:
    return np.uint64(key % (1 << 64))


def _bytes(flags: Tensor) -> Any:
    return flags.numpy().reshape(-1).view(np.uint8)


def _integers(tensor: Tensor) -> Any:
    return tensor.detach().view(_SAME_SIZE[tensor.element_size()]).numpy().reshape(-1)


def _best(
    source: Any, dtype: torch.dtype, flags: Tensor, num_flagged: int, k: int, magnitudes: bool, fill: bool
) -> Tensor | None:
    num_open = len(flags) - num_flagged if fill else num_flagged
    if not 0 < k < num_open:
        return None
    chosen, room = torch.empty_like(flags), _room(len(flags))
    ends = _ENDS[dtype]
    where, scores = np.empty(room, np.int64), torch.empty(room, dtype=dtype).numpy()
    given, into = _bytes(flags), _bytes(chosen)
    decided = _loops().best(source, magnitudes, given, fill, k, num_flagged, ends, into, where, scores)
    return chosen if decided else None


def _sample(
    source: Any, dtype: torch.dtype, flags: Tensor, num: int, step: int, magnitudes: bool, fill: bool
) -> Tensor:
    found = torch.empty(num, dtype=dtype)
    return found[: _loops().sample(source, magnitudes, _bytes(flags), fill, step, found.numpy())]


def _split(
    source: Any, dtype: torch.dtype, flags: Tensor, low: Tensor, high: Tensor, magnitudes: bool, fill: bool
) -> tuple[Tensor, int, Tensor, Tensor]:
    least, most = (value.to(dtype).numpy()[()] for value in (low, high))
    chosen, room = torch.empty_like(flags), _room(len(flags))
    given, into = _bytes(flags), _bytes(chosen)
    while True:
        where, scores = torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=dtype)
        num, num_chosen = _loops().split(
            source, magnitudes, given, fill, least, most, into, where.numpy(), scores.numpy()
        )
        if num <= room:
            return chosen, num_chosen, where[:num], scores[:num]
        room = num


def _room(num_entries: int) -> int:
    """Return what bounds from a sample leave less than between them; others need another pass."""
    return num_entries // 16 + 2048
