"""Measured inference time of a model, dense and in CSR."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from distsparse.export.convert import CsrConv, CsrLinear, to_csr
from distsparse.export.probe import device_of, evaluating, example_input

_NUM_SLICES = 10
_MAX_BUDGETS = 8
_SETTLED = 0.02
"""relative change of a median from one budget to the next that counts as none"""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one forward pass over a batch: median and the 10th and 90th percentile of the repeats."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    num_repeats: int
    batch_size: int
    num_threads: int
    stable: bool
    """whether the median had settled: those of the last two budgets of repeats differ by 2 % at most"""


def measure(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    batch_size: int = 1,
    num_threads: int | None = None,
    min_repeats: int = 20,
    budget_s: float = 0.15,
    dtype: torch.dtype = torch.float32,
) -> Latency:
    """Time the forward pass of ``model`` in eval and inference mode, after a warm-up.

    Repeats for one ``budget_s`` after another until ``min_repeats`` are done and the median has settled, but
    no longer than about eight budgets: a slow model gets fewer repeats, at least one, and ``num_repeats`` and
    ``stable`` say so. The training mode and torch's thread count are left as they were.

    Args:
        model: any module that takes one tensor.
        input_shape: shape of one sample, without the batch dimension.
        batch_size: samples per call.
        num_threads: torch's intra-op threads; None keeps the current count.
        min_repeats: at least 1.
        budget_s: seconds.
        dtype: of the input; ``torch.long`` for tokens.

    Raises:
        ValueError: a batch size, thread count, number of repeats or budget that is not positive.
    """
    return _measure(
        {"model": model},
        input_shape,
        batch_size=batch_size,
        num_threads=num_threads,
        min_repeats=min_repeats,
        budget_s=budget_s,
        dtype=dtype,
    )["model"]


def compare(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    batch_sizes: Sequence[int] = (1, 64),
    num_threads: int | None = None,
    min_repeats: int = 20,
    budget_s: float = 0.15,
    dtype: torch.dtype = torch.float32,
    min_sparsity: float = 0.8,
) -> dict[tuple[str, int], Latency]:
    """Time ``model`` as it is ("dense") and from ``to_csr`` ("csr"), by (format, batch size).

    Without "csr" where no layer is sparse enough to be converted: it would be the same network again. Nor in
    half precision, which CSR has not.

    The two take turns in short slices, so that a change of the machine's load or clock meets both. Still,
    give it a quiet machine: where cores are shared, the scheduler interrupts long calls more often than short
    ones, which flatters the faster format; a p90 far above p10 shows it. Other arguments, limits and errors
    are those of ``measure`` and ``to_csr``.
    """
    formats = {"dense": model}
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())
    converted = model if half else to_csr(model, min_sparsity=min_sparsity)
    if any(isinstance(module, (CsrLinear, CsrConv)) for module in converted.modules()):
        formats["csr"] = converted
    return {
        (name, batch_size): latency
        for batch_size in batch_sizes
        for name, latency in _measure(
            formats,
            input_shape,
            batch_size=batch_size,
            num_threads=num_threads,
            min_repeats=min_repeats,
            budget_s=budget_s,
            dtype=dtype,
        ).items()
    }


def _measure(
    models: Mapping[str, nn.Module],
    input_shape: Sequence[int],
    *,
    batch_size: int,
    num_threads: int | None,
    min_repeats: int,
    budget_s: float,
    dtype: torch.dtype,
) -> dict[str, Latency]:
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads = {num_threads}: allowed: at least 1, or None")
    if min_repeats < 1 or budget_s <= 0:
        raise ValueError(f"min_repeats = {min_repeats}, budget_s = {budget_s}: allowed: at least 1, above 0")
    with ExitStack() as stack:
        stack.enter_context(_threads(num_threads))
        stack.enter_context(torch.inference_mode())
        for model in models.values():
            stack.enter_context(evaluating(model))
        calls = [
            _call(model, example_input(model, input_shape, batch_size=batch_size, dtype=dtype))
            for model in models.values()
        ]
        samples, stable = _sample_in_turns(calls, min_repeats=min_repeats, budget_s=budget_s)
        threads = torch.get_num_threads()
    return {
        name: _summary(times_s, batch_size=batch_size, num_threads=threads, stable=stable)
        for name, times_s in zip(models, samples, strict=True)
    }


def _call(model: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """Return a call of the model that comes back when its work is done."""
    device = device_of(model)
    if device.type != "cuda":
        return lambda: model(x)

    def synchronised() -> None:
        model(x)
        torch.cuda.synchronize(device)

    return synchronised


def _sample_in_turns(
    calls: Sequence[Callable[[], Any]],
    *,
    min_repeats: int,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[list[float]], bool]:
    """Return the times in seconds of each call's repeats, slice by slice in turns, and whether they settled.

    A slice is a tenth of the budget, or one call if that is longer, and its first call is the warm-up where
    there is time for a second one: the others' slices have evicted its weights from the cache.
    """
    slice_s = budget_s / _NUM_SLICES
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    spent_s = 0.0
    medians: list[float] = []
    while spent_s < _MAX_BUDGETS * budget_s:
        until_s, num_before = spent_s + budget_s, list(map(len, times))
        while spent_s < until_s:
            started = clock()
            for call, repeats in zip(calls, times, strict=True):
                repeats.extend(_slice(call, slice_s, clock))
            spent_s += (clock() - started) / len(calls)
        before = medians
        medians = [statistics.median(new[num:]) for new, num in zip(times, num_before, strict=True)]
        settled = bool(before) and all(
            abs(now - then) <= _SETTLED * then for now, then in zip(medians, before, strict=True)
        )
        if settled and min(map(len, times)) >= min_repeats:
            return times, True
    return times, False


def _slice(call: Callable[[], Any], slice_s: float, clock: Callable[[], float]) -> list[float]:
    stamps = [clock()]
    while stamps[-1] - stamps[0] < slice_s:
        call()
        stamps.append(clock())
    times = [after - before for before, after in pairwise(stamps)]
    return times[1:] or times


def _summary(times_s: Sequence[float], *, batch_size: int, num_threads: int, stable: bool) -> Latency:
    p10, median, p90 = np.percentile(np.asarray(times_s) * 1e3, [10, 50, 90]).tolist()
    return Latency(
        median_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        num_repeats=len(times_s),
        batch_size=batch_size,
        num_threads=num_threads,
        stable=stable,
    )


@contextmanager
def _threads(num_threads: int | None) -> Iterator[None]:
    """Run with another intra-op thread count."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
