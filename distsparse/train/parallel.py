"""accelerate, set up for the processes that the runner gave us, and a model sharded over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch import distributed as torch_dist
from torch.optim import Optimizer

from distsparse.config import Launch, Train
from distsparse.core import find_weights
from distsparse.dist import layout

_DEFAULT_NUM_THREADS = torch.get_num_threads()


def make_accelerator(train: Train, launch: Launch, *, world_size: int) -> Accelerator:
    """Return an accelerator over exactly ``world_size`` processes.

    Raises:
        RuntimeError: accelerate sees another number of processes (a bare ``Accelerator()`` in a CPU worker
            silently trains alone, and every worker would see all batches).
    """
    torch.set_num_threads(launch.num_threads or _DEFAULT_NUM_THREADS)
    # A reused process keeps accelerate's singletons from the trial before.
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=train.precision if train.precision in ("bf16", "fp16") else "no",
        gradient_accumulation_steps=train.accumulation,
        # Gradients live in what is reduced: without it they are held twice, and copied there and back.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    if accelerator.num_processes != world_size:
        raise RuntimeError(
            f"accelerate runs {accelerator.num_processes} process(es), but the run has {world_size} workers"
        )
    return accelerator


def units(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose weights are gathered for their own forward and backward pass alone.

    Layers with a matrix, attention as one; what they share with others, and all that is small, belongs to the
    model as a whole.
    """
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)

    def within(module: nn.Module) -> Iterator[nn.Module]:
        children = list(module.children())
        if children and not isinstance(module, nn.MultiheadAttention):
            for child in children:
                yield from within(child)
            return
        held = list(module.parameters())
        if any(p.ndim > 1 for p in held) and all(owners[id(p)] == 1 for p in held):
            yield module

    return list(within(model))


def check_shardable(model: nn.Module, forward: Callable[[], object], *, workers: Sequence[int]) -> None:
    """Refuse a model that :func:`shard` cannot shard.

    Args:
        model: bare.
        forward: a forward pass of it.
        workers: numbers of processes that the run may have.

    Raises:
        ValueError: naming the layer.
    """
    for weight in find_weights(model):
        for number in workers if weight.transposed else ():
            if weight.shape[0] % number:
                raise ValueError(
                    f"weight {weight.name!r} has {weight.shape[0]} outputs; as it is stored (in, out), they "
                    f"must be a multiple of the workers, which may be {number}"
                )
    names = {module: name for name, module in model.named_modules()}
    unused = set(units(model))
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: unused.discard(module)) for module in unused
    ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    if unused:
        listed = ", ".join(sorted(names[module] for module in unused))
        raise ValueError(
            f"the forward pass does not call {listed}; it must, for that is where its weights are gathered"
        )


def placed_state(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's state whose whole tensors are sharded as their parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def placed(parameter: Tensor, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: layout.shard_of(value, parameter)
            if isinstance(value, Tensor) and value.shape == parameter.shape
            else value
            for name, value in values.items()
        }

    return {**state, "state": {i: placed(parameters[i], of) for i, of in state["state"].items()}}


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard a model's parameters over all processes with FSDP2, in place, onto a device; return it.

    Not through accelerate, whose FSDP falls back to DDP on a CPU without a word. Every parameter is sharded
    along its outputs, so that a process has whole rows; each layer is freed again after its forward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Shard

    transposed = {id(weight.parameter) for weight in find_weights(model) if weight.transposed}

    def along_outputs(parameter: nn.Parameter) -> Shard | None:
        return Shard(1) if id(parameter) in transposed else None

    mesh = init_device_mesh(device.type, (torch_dist.get_world_size(),))
    for module in (*units(model), model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, shard_placement_fn=along_outputs)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model
