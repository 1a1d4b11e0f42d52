"""Remove inactive channels: a smaller dense model with the same outputs."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, fx, nn

from distsparse.core.channels import LAYERS, NORMS, Channels, Follower, channels_of, keeps_zero, trace
from distsparse.core.weights import unwrap

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


def shrink(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a smaller dense copy, in evaluation mode, whose outputs equal the model's in that mode.

    An output channel (neuron) goes if its row of the mask is all inactive, its bias is zero, and so are bias
    and running mean of the batch normalisations behind it: what ``rigl_structured`` trains. It goes from the
    layer, from these normalisations and from the inputs of the layers that read it. What meets an addition, a
    concatenation, a grouped convolution, any module not in :mod:`distsparse.core.channels` or the model's
    output stays, and so does a channel that is a constant other than zero (an ablated neuron of SRigL with a
    bias).

    A layer never loses its last channel, which then is zero. An addition of a branch that is exactly zero is
    left out with the whole branch, and the copy is then a :class:`torch.fx.GraphModule` with the names of the
    model; the operands of an addition are taken to be of one shape.

    Args:
        model: bare or wrapped; left as it is.
        masks: bool (rows, cols) by the weight's name, such as ``sparsifier.topology.masks``; layers without
            one, and weights that are no Linear's or Conv's, keep all their channels.

    Raises:
        ValueError: the model cannot be traced by ``torch.fx``, a mask names no weight of it or has
            another shape, or an inactive weight is not zero.
    """
    small = copy.deepcopy(unwrap(model)).eval()
    modules = dict(small.named_modules())
    parameters = dict(small.named_parameters())
    following = channels_of(small)
    kept = {}
    for name, mask in masks.items():
        layer = name.removesuffix("weight").removesuffix(".")
        if name in parameters and not isinstance(modules.get(layer), LAYERS):
            continue  # a weight of attention, whose rows are no channels of the graph
        _check(name, modules.get(layer), mask)
        channels = following.get(layer, Channels(obstacle="not called"))
        if channels.obstacle is None:
            kept[layer] = _kept(modules[layer], mask, channels, modules)
    for layer, rows in kept.items():
        _take(modules[layer], rows, ("weight", "bias"), ("out_features", "out_channels"))
        for norm in following[layer].norms:
            tensors = ("weight", "bias", "running_mean", "running_var")
            _take(modules[norm.name], _entries(rows, norm), tensors, ("num_features",))
        for reader in following[layer].readers:
            inputs = _entries(rows, reader)
            _take(modules[reader.name], inputs, ("weight",), ("in_features", "in_channels"), dim=1)
    return _without_zero_branches(small)


def _check(name: str, layer: nn.Module | None, mask: Tensor) -> None:
    """Refuse a mask that is not of this model.

    Raises:
        ValueError: see :func:`shrink`.
    """
    if not isinstance(layer, LAYERS):
        raise ValueError(f"masks: {name!r} is no weight of the model")
    weight = cast(Tensor, layer.weight).detach()
    matrix = weight.reshape(weight.shape[0], -1)
    if mask.shape != matrix.shape:
        raise ValueError(f"masks: {name!r} has shape {tuple(mask.shape)}, its weight {tuple(matrix.shape)}")
    if bool((matrix[~mask.to(matrix.device)] != 0).any()):
        raise ValueError(
            f"masks: {name!r} has inactive weights that are not zero: not the masks of this model"
        )


def _kept(layer: nn.Module, mask: Tensor, channels: Channels, modules: Mapping[str, nn.Module]) -> Tensor:
    """Return the bool (rows,) of the channels that stay: those that are not exactly zero, at least one."""
    kept = mask.to(cast(Tensor, layer.weight).device).any(1)
    owners = [(layer, "bias", 1)]
    owners += [(modules[n.name], a, n.repeat) for n in channels.norms for a in ("bias", "running_mean")]
    for owner, attribute, repeat in owners:
        value: Tensor | None = getattr(owner, attribute)
        if value is not None:
            kept = kept | (value.detach().reshape(-1, repeat) != 0).any(1)
    if not bool(kept.any()):
        kept[0] = True
    return kept


def _entries(rows: Tensor, follower: Follower) -> Tensor:
    return rows.repeat_interleave(follower.repeat)


def _take(
    module: nn.Module, kept: Tensor, tensors: tuple[str, ...], sizes: tuple[str, ...], *, dim: int = 0
) -> None:
    """Keep these entries of a module's tensors along a dimension, and set its sizes to their number."""
    index = kept.nonzero().squeeze(1)
    for name in tensors:
        value: Tensor | None = getattr(module, name)
        if isinstance(value, nn.Parameter):
            taken = value.detach().index_select(dim, index)
            setattr(module, name, nn.Parameter(taken, requires_grad=value.requires_grad))
        elif value is not None:
            setattr(module, name, value.index_select(dim, index))
    for name in sizes:
        if hasattr(module, name):
            setattr(module, name, len(index))


def _without_zero_branches(model: nn.Module) -> nn.Module:
    """Replace additions of an operand that is exactly zero by the other operand; remove what none reads."""
    modules = dict(model.named_modules())
    graph = trace(model)
    zero: set[fx.Node] = set()
    found = False
    for node in list(graph.nodes):
        operands = [operand for operand in node.args if isinstance(operand, fx.Node)]
        if _is_zero(node, zero, modules):
            zero.add(node)
        elif node.target in _ADDITIONS and len(operands) == len(node.args) == 2 and not node.kwargs:
            others = [operand for operand in operands if operand not in zero]
            if len(others) == 1:
                node.replace_all_uses_with(others[0])
                graph.erase_node(node)
                found = True
            elif not others:
                zero.add(node)
    if not found:
        return model
    smaller = fx.GraphModule(model, graph, type(model).__name__)
    # In evaluation mode nothing has effects of its own, not dropout either.
    smaller.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    smaller.recompile()
    smaller.delete_all_unused_submodules()
    return smaller.eval()


def _is_zero(node: fx.Node, zero: set[fx.Node], modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether a node's output is exactly zero in evaluation mode, given the nodes before it that are."""
    of_zero = bool(node.args) and node.args[0] in zero
    module = modules[str(node.target)] if node.op == "call_module" else None
    if type(module) in LAYERS:
        return (of_zero or _all_zero(module, "weight")) and _all_zero(module, "bias")
    if type(module) in NORMS:
        return of_zero and _all_zero(module, "bias") and _all_zero(module, "running_mean")
    return of_zero and keeps_zero(node, modules) is not None


def _all_zero(module: nn.Module | None, attribute: str) -> bool:
    value: Tensor | None = getattr(module, attribute)
    return value is None or not bool(value.any())
