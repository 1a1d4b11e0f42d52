"""Optimizers: SGD, Adam and AdamW, and every other optimizer of ``torch.optim`` by its lower-case name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.optim import Optimizer

from distsparse.optim.registry import Params, optimizers

LearningRate = Annotated[float, Field(gt=0, description="learning rate at the schedule's peak")]
Momentum = Annotated[float, Field(ge=0, lt=1, description="share of the last update that is kept")]
Nesterov = Annotated[bool, Field(description="look ahead by the momentum; needs momentum above 0")]
WeightDecay = Annotated[
    float, Field(ge=0, description="L2 penalty added to the gradient, of every parameter")
]
DecoupledDecay = Annotated[
    float, Field(ge=0, description="weight decay per unit of learning rate, not via the gradient")
]
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[
    tuple[Beta, Beta], Field(description="decay of the averages of the gradient and of its square")
]
Epsilon = Annotated[float, Field(gt=0, description="added to the denominator")]
AMSGrad = Annotated[bool, Field(description="divide by the largest average of the squared gradient so far")]


@optimizers.register("sgd")
def sgd(
    params: Params,
    *,
    lr: LearningRate = 0.1,
    momentum: Momentum = 0.9,
    nesterov: Nesterov = False,
    weight_decay: WeightDecay = 0.0,
) -> Optimizer:
    """Stochastic gradient descent with momentum (Sutskever et al., 2013)."""
    return torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


@optimizers.register("adam")
def adam(
    params: Params,
    *,
    lr: LearningRate = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: Epsilon = 1e-8,
    weight_decay: WeightDecay = 0.0,
    amsgrad: AMSGrad = False,
) -> Optimizer:
    """Adam (Kingma & Ba, 2015, arXiv:1412.6980)."""
    return torch.optim.Adam(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)


@optimizers.register("adamw")
def adamw(
    params: Params,
    *,
    lr: LearningRate = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: Epsilon = 1e-8,
    weight_decay: DecoupledDecay = 0.01,
    amsgrad: AMSGrad = False,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019, arXiv:1711.05101)."""
    return torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)


# LBFGS needs a closure, SparseAdam sparse gradients, Muon parameters of two dimensions only.
_NOT_GENERAL = {"Optimizer", "LBFGS", "SparseAdam", "Muon"}
NOT_SHARDED = ("adafactor", "rprop")
"""optimizers that torch cannot run on sharded parameters: means over a whole weight, indexed assignments"""
# How a step is executed, not what it computes: torch chooses well, and `differentiable` records a graph.
_EXECUTION = {"foreach", "fused", "capturable", "differentiable"}


def _from_class(cls: type[Optimizer]) -> Callable[..., Optimizer]:
    """Return a factory ``(params, *, ...)`` whose keywords and defaults are those of an optimizer class.

    A keyword's type is that of its default; torch writes 0 for 0.0, so every number is a float.
    """

    def factory(params: Params, **config: Any) -> Optimizer:
        return cls(params, **config)

    keywords = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=_annotation(cls, parameter))
        for parameter in list(inspect.signature(cls).parameters.values())[1:]
        if parameter.name not in _EXECUTION
    ]
    first = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Params)
    factory.__signature__ = inspect.Signature([first, *keywords])  # type: ignore[attr-defined]
    factory.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    factory.__name__ = factory.__qualname__ = cls.__name__.lower()
    factory.__doc__ = f"{(inspect.getdoc(cls) or '').partition(chr(10))[0]} torch.optim.{cls.__name__}."
    return factory


def _annotation(cls: type[Optimizer], parameter: inspect.Parameter) -> Any:
    """Return the type of a parameter's default with a description."""
    description = f"{parameter.name} of torch.optim.{cls.__name__}"
    return Annotated[_type_of(parameter.default), Field(description=description)]


def _type_of(default: object) -> Any:
    if isinstance(default, tuple):
        return tuple[tuple(_type_of(item) for item in default)]  # type: ignore[misc]
    if isinstance(default, bool):
        return bool
    return float | None if default is None else float


def _register_others() -> None:
    """Register the general optimizers of the installed torch that have no factory above."""
    for name in torch.optim.__all__:
        cls = getattr(torch.optim, name)
        general = isinstance(cls, type) and issubclass(cls, Optimizer) and name not in _NOT_GENERAL
        if general and name not in ("SGD", "Adam", "AdamW"):
            optimizers.register(name.lower())(_from_class(cls))


_register_others()
