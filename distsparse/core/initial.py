"""Signals of the first topology: gradients, Hessian products, synaptic flow, loss curves, from batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distsparse.core.loss_curves import SPARSITIES, mean_losses
from distsparse.core.weights import SparseWeight, unwrap
from distsparse.dist import Comm
from distsparse.dist.layout import is_sharded, local

Batch = Any
LossFn = Callable[[nn.Module, Batch], Tensor]


def initial_signals(
    needs: frozenset[str],
    model: nn.Module,
    weights: Mapping[str, SparseWeight],
    batches: Sequence[Batch],
    loss_fn: LossFn,
    comm: Comm,
    *,
    temperature: float = 1.0,
) -> dict[str, dict[str, Tensor]]:
    """Return the signals that the initial moves need, by layer and signal, equal on all ranks.

    The model's own gradients, its buffers (batch statistics) and its mode are left as found. All ranks must
    call it.
    """
    bare = unwrap(model)
    softened = bare if temperature == 1 else _Softened(bare, temperature)
    parameters = [weight.parameter for weight in weights.values()]
    sharded = is_sharded(parameters[0])
    buffers = [buffer.clone() for buffer in bare.buffers()]
    found: dict[str, list[Tensor]] = {}
    if sharded and needs & {"grad", "grad_abs"}:
        found["grad"] = _sharded_mean_gradient(softened, batches, loss_fn, parameters, comm)
    elif needs & {"grad", "grad_abs", "hessian_grad"}:
        found["grad"] = _mean(
            batches, lambda batch: _gradient(softened, batch, loss_fn, parameters), parameters, comm
        )
    if "grad" in found:
        found["grad_abs"] = [gradient.abs() for gradient in found["grad"]]
    if "hessian_grad" in needs:
        gradient = found["grad"]
        found["hessian_grad"] = _mean(
            batches,
            lambda batch: _hessian_product(softened, batch, loss_fn, parameters, gradient),
            parameters,
            comm,
        )
    if "flow" in needs:
        found["flow"] = _flow(bare, batches, parameters)
    for buffer, value in zip(bare.buffers(), buffers, strict=True):
        buffer.copy_(value)  # batch normalisation has counted batches that do not belong to the run
    signals = {
        name: {kind: weight.matrix(values[i]) for kind, values in found.items()}
        for i, (name, weight) in enumerate(weights.items())
    }
    if "loss_curve" in needs:
        base, losses = mean_losses(bare, weights, batches, loss_fn, comm)
        for name, curve in losses.items():
            points = [(s, loss - base) for s, loss in zip(SPARSITIES, curve, strict=True)]
            signals[name]["loss_curve"] = torch.tensor(points, dtype=torch.float64)
    return signals


class _Softened(nn.Module):
    """A model whose output tensor is divided by a temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self._model = model
        self._temperature = temperature

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs) / self._temperature


def _gradient(
    model: nn.Module, batch: Batch, loss_fn: LossFn, parameters: Sequence[nn.Parameter]
) -> Sequence[Tensor]:
    # That of a weight which the loss does not depend on is zero, as a backward pass over shards leaves it.
    return torch.autograd.grad(loss_fn(model, batch), parameters, materialize_grads=True)


def _sharded_mean_gradient(
    model: nn.Module,
    batches: Sequence[Batch],
    loss_fn: LossFn,
    parameters: Sequence[nn.Parameter],
    comm: Comm,
) -> list[Tensor]:
    """Return this rank's parts of the mean gradient over all ranks' batches.

    FSDP2 gathers and scatters in hooks of a backward pass that ends in the parameters, so all ranks must make
    equally many.

    Raises:
        ValueError: ranks hold different numbers of batches, or none.
    """
    held = torch.tensor([len(batches)], device=parameters[0].device)
    numbers = [int(number) for number in comm.gather(held)]
    if len(set(numbers)) > 1 or not numbers[0]:
        raise ValueError(
            f"this method's first topology needs data: with sharded weights as many batches on every rank, "
            f"and at least one; ranks hold {numbers}"
        )
    kept = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    for batch in batches:
        loss_fn(model, batch).backward()  # type: ignore[no-untyped-call]
    found = []
    for parameter in parameters:
        gradient = parameter.grad
        found.append(torch.zeros_like(local(parameter.detach())) if gradient is None else local(gradient))
    for parameter, gradient in zip(model.parameters(), kept, strict=True):
        parameter.grad = gradient
    return [gradient / len(batches) for gradient in found]


def _hessian_product(
    model: nn.Module,
    batch: Batch,
    loss_fn: LossFn,
    parameters: Sequence[nn.Parameter],
    vector: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Return the Hessian of a batch's loss times a vector, by differentiating ⟨gradient, vector⟩."""
    gradients = torch.autograd.grad(
        loss_fn(model, batch), parameters, create_graph=True, materialize_grads=True
    )
    product = sum((g * v).sum() for g, v in zip(gradients, vector, strict=True))
    assert isinstance(product, Tensor)
    return torch.autograd.grad(product, parameters, materialize_grads=True)


def _mean(
    batches: Iterable[Batch],
    of: Callable[[Batch], Sequence[Tensor]],
    parameters: Sequence[nn.Parameter],
    comm: Comm,
) -> list[Tensor]:
    """Return the mean over all ranks' batches; ranks may hold different numbers of them.

    Raises:
        ValueError: no rank holds any.
    """
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    num_batches = torch.zeros(1, dtype=torch.int64, device=parameters[0].device)
    for batch in batches:
        totals = [total + part for total, part in zip(totals, of(batch), strict=True)]
        num_batches += 1
    count = int(comm.sum(num_batches))
    if count == 0:
        raise ValueError("this method's first topology needs data, and batches is empty")
    return [comm.sum(total) / count for total in totals]


def _flow(model: nn.Module, batches: Sequence[Batch], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return ∂R/∂|w| of R = the sum of the outputs for an input of ones and absolute weights.

    In evaluation mode, so that a fresh batch normalisation is the identity, and in double precision, since
    R grows with the depth.

    Raises:
        ValueError: there is no batch, or none that tells the input's shape.
    """
    if not batches:
        raise ValueError("synaptic flow needs one batch, for the shape of the input, and batches is empty")
    first = batches[0]
    inputs = first[0] if isinstance(first, (tuple, list)) else first
    if not isinstance(inputs, Tensor):
        raise ValueError(
            "synaptic flow needs a batch that is a tensor of inputs, or (inputs, …), "
            f"not {type(first).__name__}"
        )
    ones = torch.ones_like(inputs[:1], dtype=torch.float64)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    absolute = {
        name: parameter.detach().to(torch.float64).abs().requires_grad_()
        for name, parameter in model.named_parameters()
    }
    buffers = {
        name: buffer.to(torch.float64) if buffer.is_floating_point() else buffer.clone()
        for name, buffer in model.named_buffers()
    }
    training = model.training
    model.eval()
    try:
        outputs: Tensor = functional_call(model, (absolute, buffers), (ones,))
    finally:
        model.train(training)
    weights = [absolute[names[id(p)]] for p in parameters]
    return list(torch.autograd.grad(outputs.sum(), weights, materialize_grads=True))
