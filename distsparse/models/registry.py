"""The registry of models, and building one from its name and keywords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from distsparse.registry import Registry

models: Registry[nn.Module] = Registry("model")


def build(name: str, input_shape: tuple[int, ...], num_classes: int, params: Mapping[str, Any]) -> nn.Module:
    """Return a new model on the CPU that maps inputs of ``input_shape`` to ``num_classes`` logits.

    ``input_shape`` is without the batch dimension. The weights are a function of torch's
    random state: equal after an equal ``torch.manual_seed``.

    Raises:
        ValueError: unknown model or keyword, a value out of range, an input the model cannot take, or a
            custom factory whose result is no ``nn.Module``.
    """
    entry = models.get(name)
    model: object = entry.factory(input_shape, num_classes, **entry.parse(params, "model"))
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r} returned {type(model).__name__}; it must return a torch.nn.Module")
    return model
