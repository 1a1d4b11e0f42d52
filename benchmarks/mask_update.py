"""Time and memory of a full mask update of ResNet-50's weights, beside copying them and beside rigl-torch.

python benchmarks/mask_update.py [--rounds 15] [--threads 1] [--methods rigl set gmp]

Two copies of the weights and gradients stand beside the updates: into memory that holds all of them
afterwards, and one tensor at a time, each let go at once, so that what is written never leaves the caches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
import types
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import accumulate

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from distsparse import Sparsifier
from distsparse.core import Method
from distsparse.export import describe
from distsparse.methods import gmp, rigl, set_

Update = Callable[[], None]

TOTAL_STEPS, STEP = 1000, 100
METHODS: dict[str, Callable[[], Method]] = {
    "rigl": lambda: rigl(sparsity=0.9, alpha=0.3, delta_T=STEP),
    "set": lambda: set_(sparsity=0.9, alpha=0.3, delta_T=STEP),
    "gmp": lambda: gmp(sparsity=0.9, delta_T=STEP, allocation="global_magnitude"),
}
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
"""width and blocks; a block is 1×1, 3×3, 1×1 to four times the width"""


def main() -> None:
    """Measure the updates, the copy and rigl-torch in turn, and print a Markdown table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)

    updates: dict[str, Update] = {}
    for name in arguments.methods:
        model, optimizer = resnet50_weights(device)
        updates[name] = our_update(METHODS[name](), model, optimizer)
    updates["copy"] = whole_copy(model)
    updates["copy let go"] = lambda: copy_and_let_go(model)
    other, reason = rigl_torch_update(device)
    if other:
        updates["rigl-torch"] = other

    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for round_ in range(arguments.rounds + 2):
        for name, update in updates.items():
            if name == "rigl-torch" and round_ >= 5:
                continue  # a hundred times as long as the others
            elapsed = timed(update, device)
            if round_ >= 2:
                seconds[name].append(elapsed)

    machine = describe()
    largest = max(weight.numel() * weight.element_size() for weight in model.parameters())
    print(
        f"{machine['accelerator'] or machine['cpu']}, {torch.get_num_threads()} CPU threads, "
        f"torch {machine['torch_version']}; median (least) ms of {arguments.rounds} rounds\n"
    )
    print(
        "| method | update | copy | ratio | copy let go | ratio "
        "| rigl-torch | ratio | peak extra memory / largest layer |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.methods:
        theirs, their_ratio = "–", "–"
        if name == "rigl" and other:
            theirs, their_ratio = ms(seconds["rigl-torch"]), ratio(seconds[name], seconds["rigl-torch"])
        memory = peak_extra_bytes(updates[name], device) / largest
        copies = " | ".join(
            f"{ms(seconds[copy])} | {ratio(seconds[name], seconds[copy])}" for copy in ("copy", "copy let go")
        )
        print(f"| {name} | {ms(seconds[name])} | {copies} | {theirs} | {their_ratio} | {memory:.2f} |")
    print(f"\n{reason}" if reason else "")


def ms(seconds: list[float]) -> str:
    """Return the median and the least."""
    return f"{1e3 * statistics.median(seconds):.1f} ({1e3 * min(seconds):.1f})"


def ratio(first: list[float], second: list[float]) -> str:
    """Return the ratio of the medians, and of the least."""
    return f"{statistics.median(first) / statistics.median(second):.3g} ({min(first) / min(second):.3g})"


def resnet50_shapes() -> Iterator[tuple[int, ...]]:
    """Yield the weight shapes of ResNet-50 for ImageNet's 1000 classes, 25.5 million weights."""
    yield 64, 3, 7, 7
    inputs = 64
    for width, num_blocks in STAGES:
        for block in range(num_blocks):
            yield width, inputs, 1, 1
            yield width, width, 3, 3
            yield 4 * width, width, 1, 1
            if block == 0:
                yield 4 * width, inputs, 1, 1
            inputs = 4 * width
    yield 1000, inputs


def resnet50_weights(device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return layers of ResNet-50's shapes with gradients, and SGD with its momentum."""
    layers: list[nn.Module] = []
    for shape in resnet50_shapes():
        rows, cols, *kernel = shape
        layers.append(
            nn.Conv2d(cols, rows, tuple(kernel), bias=False) if kernel else nn.Linear(cols, rows, bias=False)
        )
    model = nn.Sequential(*layers).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    fill_gradients(model)
    optimizer.step()
    return model, optimizer


def fill_gradients(model: nn.Module) -> None:
    """Draw every weight's gradient."""
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)


def our_update(method: Method, model: nn.Module, optimizer: torch.optim.Optimizer) -> Update:
    """Return a step with an update, always the same one: all that it changes is put back before it."""
    sparsifier = Sparsifier.attach(method, model, optimizer, total_steps=TOTAL_STEPS, seed=0)
    sparsifier.initialize()
    state = {**sparsifier.state_dict(), "step": STEP}
    momentum = [optimizer.state[weight]["momentum_buffer"] for weight in model.parameters()]
    gradients = [torch.randn_like(weight) for weight in model.parameters()]
    changed = [*(weight.detach() for weight in model.parameters()), *momentum]
    before = [value.clone() for value in changed] + gradients

    def prepare() -> None:
        for value, old in zip(
            [*changed, *(weight.grad for weight in model.parameters())], before, strict=True
        ):
            value.copy_(old)
        sparsifier.load_state_dict(deepcopy(state))

    def update() -> None:
        event = sparsifier.step()
        assert event is not None
        assert event.num_dropped > 0

    update.prepare = prepare  # type: ignore[attr-defined]
    return update


def rigl_torch_update(device: torch.device) -> tuple[Update | None, str]:
    """Return rigl-torch's update of the same weights, or None and why it is left out.

    Its only allocation is uniform with a dense first layer, so that its counts by layer are others. It
    imports torchvision for the type of a block, which is not needed here.
    """
    try:
        try:
            import torchvision  # noqa: F401
        except ImportError:
            resnet = types.SimpleNamespace(Bottleneck=nn.Identity, BasicBlock=nn.Identity)
            module = types.ModuleType("torchvision")
            module.models = types.SimpleNamespace(resnet=resnet)  # type: ignore[attr-defined]
            sys.modules["torchvision"] = module
        from rigl_torch.RigL import RigLScheduler
    except ImportError as error:
        return None, f"rigl-torch is left out: {error}."
    model, optimizer = resnet50_weights(device)
    scheduler = RigLScheduler(
        model, optimizer, dense_allocation=0.1, T_end=750, delta=STEP, alpha=0.3, ignore_linear_layers=False
    )
    scheduler.step = STEP
    for hook, weight in zip(scheduler.backward_hook_objects, model.parameters(), strict=True):
        if hook is not None:
            hook.dense_grad = torch.randn_like(weight)
    return scheduler._rigl_step, ""


def whole_copy(model: nn.Module) -> Update:
    """Return what copies every weight and every gradient to a second place."""
    sources = [tensor for weight in model.parameters() for tensor in (weight.detach(), weight.grad)]
    copies = [torch.zeros_like(source) for source in sources]

    def copy() -> None:
        for target, source in zip(copies, sources, strict=True):
            target.copy_(source)

    return copy


def copy_and_let_go(model: nn.Module) -> None:
    """Copy every weight and every gradient; a copy is let go at once, so that memory is used again."""
    for weight in model.parameters():
        weight.detach().clone()
        if weight.grad is not None:
            weight.grad.clone()


def timed(function: Update, device: torch.device) -> float:
    """Return the seconds of one call."""
    getattr(function, "prepare", lambda: None)()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_extra_bytes(function: Update, device: torch.device) -> int:
    """Return the most that is held during a call, beyond what was held before it.

    On a CPU on one thread, the only one that the profiler sees; the peaks of torch's and of numpy's memory
    are added, whether or not they coincide.
    """
    prepare = getattr(function, "prepare", lambda: None)
    prepare()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    torch.set_num_threads(1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        tracemalloc.start()
        function()  # so that both know the masks that the next call lets go
        prepare()
        tracemalloc.reset_peak()
        held_before, _ = tracemalloc.get_traced_memory()
        with record_function("measured"):
            function()
        numpy_bytes = tracemalloc.get_traced_memory()[1] - held_before
        tracemalloc.stop()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    start = next(event.start_ns() for event in events if event.name() == "measured")
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = accumulate(num_bytes for at, num_bytes in changes if at >= start)
    return max(held) + numpy_bytes


if __name__ == "__main__":
    main()
