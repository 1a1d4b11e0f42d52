"""A run's model and method, from its configuration."""

from __future__ import annotations

import torch
from torch import nn

from distsparse import models
from distsparse.config import RunConfig, parse
from distsparse.core import Method, Ticket, load_network
from distsparse.data import Dataset
from distsparse.methods import methods
from distsparse.ops.counter_rng import key
from distsparse.train import checkpoint


def build_method(config: RunConfig) -> Method:
    """Return the configured method."""
    return methods.get(config.method.name).factory(**config.method.params)


def build_model(config: RunConfig, dataset: Dataset, *, purpose: str = "weights") -> nn.Module:
    """Return the configured model with the weights that its seed gives, on the CPU.

    Another ``purpose`` gives other weights.
    """
    torch.manual_seed(key(config.seed, purpose))
    model = models.build(config.model.name, dataset.input_shape, dataset.num_classes, config.model.params)
    return model.double() if config.train.precision == "fp64" else model


def starting_model(config: RunConfig, dataset: Dataset, method: Method) -> nn.Module:
    """Return the configured model with the weights that training starts from, on the CPU.

    Raises:
        ValueError: the method starts from another run's weights, and they are not of this model.
    """
    model = build_model(config, dataset)
    if method.ticket is not None and method.ticket.start != "random":
        _load(model, method.ticket, dataset)
    return model


def _load(model: nn.Module, ticket: Ticket, dataset: Dataset) -> None:
    if ticket.start == "trained":
        network, _ = load_network(ticket.folder)
    else:
        state = checkpoint.load_state(ticket.folder)
        if state["rewinder"]:
            network = state["rewinder"]["network"]
        else:
            config = parse(state["config"])
            network = starting_model(config, dataset, build_method(config)).state_dict()
    try:
        model.load_state_dict(network)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"source: the checkpoint {ticket.folder} is of another model: {reason}") from None
