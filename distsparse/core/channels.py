"""What belongs to a layer's output channels: its bias, the norms behind it, the layers that read it.

Found in the model's graph, as ``torch.fx`` traces it symbolically. A channel is followed from a Linear or
Conv layer through batch normalisations, activations with f(0) = 0, poolings, dropout and flattening to the
Linear and ungrouped Conv layers that read it. Inputs are taken to be batched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from distsparse.core.weights import SparseWeight, find_weights, own_class, unwrap
from distsparse.dist.layout import local, own_rows

LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NAMES = {
    "elementwise": "relu relu6 leaky_relu elu selu celu gelu silu mish tanh hardswish softsign tanhshrink "
    "softshrink hardshrink dropout dropout1d dropout2d dropout3d",
    "pool": " ".join(
        f"{kind}_pool{dims}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for dims in "123"
    ),
}
_FUNCTIONS = {
    getattr(owner, name): kind
    for kind, names in _NAMES.items()
    for name in names.split()
    for owner in (F, torch)
    if hasattr(owner, name)
}
_METHODS = {"relu": "elementwise", "relu_": "elementwise", "tanh": "elementwise", "contiguous": "elementwise"}
_CLASSES = {
    "elementwise": "Identity ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Tanh Hardswish Softsign "
    "Tanhshrink Softshrink Hardshrink Dropout Dropout1d Dropout2d Dropout3d",
    "pool": " ".join(
        f"{kind}Pool{dims}d" for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for dims in "123"
    ),
}
_MODULES = {getattr(nn, name): kind for kind, names in _CLASSES.items() for name in names.split()}

Layout = Literal["map", "flat", "last"]
"""where the channels are: dim 1 of a convolution's output, dim 1 of it flattened, a linear layer's last"""


@dataclass(frozen=True)
class Follower:
    """A module with ``repeat`` entries for each channel, those of channel c from c · repeat on."""

    name: str
    repeat: int = 1


@dataclass(frozen=True)
class Channels:
    """What follows a layer's output channels."""

    norms: tuple[Follower, ...] = ()
    readers: tuple[Follower, ...] = ()
    obstacle: str | None = None
    """what stands against the removal of a channel; None where one may be removed"""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        # FSDP2's subclass of a layer is of another Python module than torch.nn, where fx looks for leaves.
        own = own_class(module)
        return own.__module__.startswith("torch.nn") and not issubclass(own, nn.Sequential)


def trace(model: nn.Module) -> fx.Graph:
    """Return a model's graph.

    Raises:
        ValueError: its forward cannot be traced symbolically, for example where control flow depends on data.
    """
    try:
        return _Tracer().trace(model)
    except Exception as error:  # whatever a model's own code makes of values without a value
        raise ValueError(
            f"model {type(model).__name__} cannot be traced by torch.fx, so what follows its layers is "
            f"unknown: {error}"
        ) from error


def keeps_zero(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    """Return "elementwise", "pool" or "flatten" if a channel of zeros stays one through a node, else None."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if type(module) is nn.Flatten:
            return "flatten" if (module.start_dim, module.end_dim) == (1, -1) else None
        return _MODULES.get(own_class(module))
    if node.target in (torch.flatten, "flatten"):
        positional = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False))
        dims = {"start_dim": 0, "end_dim": -1, **positional, **node.kwargs}
        return "flatten" if (dims["start_dim"], dims["end_dim"]) == (1, -1) else None
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    return _METHODS.get(str(node.target)) if node.op == "call_method" else None


def channels_of(model: nn.Module) -> dict[str, Channels]:
    """Return what follows each Linear and Conv layer of a bare model, by the layer's name.

    Raises:
        ValueError: the model cannot be traced.
    """
    modules = dict(model.named_modules())
    graph = trace(model)
    uses = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    uses.update(str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr")
    owners = Counter(id(p) for m in modules.values() for p in m._parameters.values() if p is not None)
    once = {
        name
        for name, module in modules.items()
        if uses[name] == 1 and all(owners[id(p)] == 1 for p in module._parameters.values() if p is not None)
    }
    found = {}
    for node in graph.nodes:
        if node.op == "call_module" and own_class(modules[node.target]) in LAYERS:
            found[node.target] = _follow(node, modules, once)
    return found


def _follow(start: fx.Node, modules: Mapping[str, nn.Module], once: set[str]) -> Channels:
    """Walk from a layer's output to all that uses it."""
    name = str(start.target)
    layer = modules[name]
    if name not in once or "weight" not in layer._parameters:
        return Channels(obstacle=f"{name} is used more than once, or its weight is")
    num_channels = getattr(layer, "weight").shape[0]  # noqa: B009  a Linear or a Conv
    obstacle = f"{name} is grouped" if getattr(layer, "groups", 1) != 1 else None
    norms, readers = [], []
    queue: list[tuple[fx.Node, Layout]] = [(start, "last" if isinstance(layer, nn.Linear) else "map")]
    while queue:
        node, layout = queue.pop()
        for user in node.users:
            kind = keeps_zero(user, modules)
            module = modules[str(user.target)] if user.op == "call_module" else None
            if kind == "flatten":
                queue.append((user, "flat" if layout == "map" else layout))
            elif kind == "elementwise" or (kind == "pool" and layout == "map"):
                queue.append((user, layout))
            elif module is not None and user.target in once and (size := _size(module, layout)):
                repeat, rest = divmod(size, num_channels)
                if rest or (repeat != 1 and layout != "flat"):
                    obstacle = f"{user.target} reads another number of channels"
                elif own_class(module) in NORMS:
                    norms.append(Follower(str(user.target), repeat))
                    queue.append((user, layout))
                else:
                    readers.append(Follower(str(user.target), repeat))
            else:
                obstacle = f"the channels meet {user.target if user.op != 'output' else 'the output'}"
    return Channels(tuple(norms), tuple(readers), obstacle)


def _size(module: nn.Module, layout: Layout) -> int | None:
    """Return how many channels a norm or a reader takes in this layout; None for any other module."""
    of = own_class(module)
    if of in NORMS and (of is nn.BatchNorm1d or layout == "map"):
        return int(getattr(module, "num_features"))  # noqa: B009
    if layout == "map":
        ungrouped = of in LAYERS[1:] and getattr(module, "groups") == 1  # noqa: B009
        return int(getattr(module, "in_channels")) if ungrouped else None  # noqa: B009
    return int(getattr(module, "in_features")) if of is nn.Linear else None  # noqa: B009


def output_layers(model: nn.Module, weights: Sequence[SparseWeight]) -> frozenset[str]:
    """Return the names of weights whose rows are outputs of the model: no other layer reads them.

    In a model that cannot be traced it is its last weight, in its own order, if it is among these.
    """
    bare = unwrap(model)
    names = {id(weight.parameter): weight.name for weight in weights}
    try:
        graph = trace(bare)
    except ValueError:
        last = find_weights(bare)[-1].parameter
        return frozenset({names[id(last)]} if id(last) in names else ())
    found: set[str] = set()
    for node in graph.nodes:
        parameters = _matrices_of(node, bare)
        if any(id(parameter) in names for parameter in parameters) and _reaches_output(node, bare):
            # Of an attention it is the last projection.
            found.update({names[id(parameters[-1])]} if id(parameters[-1]) in names else ())
    return frozenset(found)


def _matrices_of(node: fx.Node, model: nn.Module) -> list[nn.Parameter]:
    """Return what a node of the graph multiplies with: a module's parameters of two or more dimensions."""
    if node.op != "call_module":
        return []
    return [
        parameter for parameter in model.get_submodule(str(node.target)).parameters() if parameter.ndim > 1
    ]


def _reaches_output(start: fx.Node, model: nn.Module) -> bool:
    """Tell whether a node's values come to the model's output without another layer between."""
    queue, seen = [start], {start}
    while queue:
        for user in queue.pop().users:
            if user.op == "output":
                return True
            weighted = any(value.op == "get_attr" for value in user.all_input_nodes)
            if user not in seen and not weighted and not _matrices_of(user, model):
                seen.add(user)
                queue.append(user)
    return False


@dataclass(frozen=True)
class Companion:
    """A tensor with entries of its own for each channel, that are zero where the channel is inactive."""

    owner: nn.Module
    attribute: str
    repeat: int = 1

    @property
    def tensor(self) -> Tensor | None:
        """The parameter or buffer, None where the module has none."""
        value: Tensor | None = getattr(self.owner, self.attribute, None)
        return value

    def closed(self, rows: Tensor) -> Tensor:
        """Return bool flags of the entries held here whose row is inactive, from flags of all such rows."""
        entries = rows.repeat_interleave(self.repeat)
        assert self.tensor is not None
        return own_rows(entries, self.tensor)


def companions(model: nn.Module, weights: Sequence[SparseWeight]) -> dict[str, list[Companion]]:
    """Return what must be zero with a row of each weight, for the row's channel to be exactly zero.

    The layer's own bias, and of the batch normalisations behind it the bias and the running mean; not their
    scale, without which no gradient would reach the channel. A model that cannot be traced has the layers'
    own biases only.
    """
    bare = unwrap(model)
    owners = {id(module._parameters["weight"]): (name, module) for name, module in _with_weight(bare)}
    modules = dict(bare.named_modules())
    try:
        followers = channels_of(bare)
    except ValueError:
        followers = {}
    found: dict[str, list[Companion]] = {}
    for weight in weights:
        if id(weight.parameter) in owners:
            name, module = owners[id(weight.parameter)]
            found[weight.name] = [Companion(module, "bias")]
            for norm in followers.get(name, Channels()).norms:
                for attribute in ("bias", "running_mean"):
                    found[weight.name].append(Companion(modules[norm.name], attribute, norm.repeat))
    return {name: [c for c in of if c.tensor is not None] for name, of in found.items()}


def _with_weight(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules with a weight parameter, the first owner of a tied one last."""
    named: list[tuple[str, nn.Module]] = list(model.named_modules())
    yield from reversed([(name, module) for name, module in named if "weight" in module._parameters])


def zero_closed(companion: Companion, closed: Tensor, state: Mapping[Any, Mapping[str, Any]]) -> None:
    """Zero a companion's entries in place where ``closed``, and the optimizer's state of them."""
    tensor = companion.tensor
    assert tensor is not None
    for value in (tensor, *state.get(tensor, {}).values()):
        if isinstance(value, Tensor) and value.shape == tensor.shape:
            local(value.detach()).masked_fill_(closed, 0)
