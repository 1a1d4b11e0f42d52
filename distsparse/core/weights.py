"""Which weights of a model are sparsified, and how one of them is seen as a (rows, cols) matrix."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distsparse.dist import layout

# torch.compile puts a level of its own into the names of what it compiled.
_COMPILED = re.compile(r"(^|(?<=\.))_orig_mod\.")


@dataclass(frozen=True)
class SparseWeight:
    """One sparsified weight: rows are outputs (neurons, channels), columns everything that feeds one.

    FSDP2 may have sharded it: this process then has some of its rows.
    """

    name: str
    kind: str
    parameter: nn.Parameter
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Output-first shape of the whole, (out, in) or (out, in, *kernel), for allocations."""
        shape = tuple(self.parameter.shape)
        return shape[::-1] if self.transposed else shape

    @property
    def rows(self) -> Tensor:
        """The weight's rows here, (rows, cols); shares the parameter's memory where that can be."""
        return self.matrix(layout.local(self.parameter.detach()))

    @property
    def gradient_rows(self) -> Tensor | None:
        """The gradient of :attr:`rows`."""
        gradient = self.parameter.grad
        return None if gradient is None else self.matrix(layout.local(gradient))

    @property
    def first_row(self) -> int:
        """The place of the rows here in the whole."""
        return layout.first_row(self.parameter)

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the parameter's shape, or of its part here, as (rows, cols)."""
        return tensor.t() if self.transposed else tensor.flatten(1)

    def unmatrix(self, matrix: Tensor) -> Tensor:
        """Return a (rows, cols) matrix in the parameter's shape, or that of its part here."""
        return matrix.t() if self.transposed else matrix.reshape(len(matrix), *self.parameter.shape[1:])


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class, which FSDP2 replaces by a subclass of it."""
    # As for DTensor: where nobody has imported FSDP2, whose import takes seconds, there is none.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(module, fsdp.FSDPModule):
        return type(module)
    return next(base for base in type(module).__mro__ if not issubclass(base, fsdp.FSDPModule))


def _weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield (attribute, parameter, transposed) of the weights a module may have sparsified."""
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        yield "weight", module.weight, False
    elif isinstance(module, nn.MultiheadAttention):
        for attribute in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            yield attribute, getattr(module, attribute), False
    elif (own := own_class(module)).__name__ == "Conv1D" and own.__module__.startswith("transformers."):
        yield "weight", cast(Tensor, module.weight), True  # stored (in, out)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def find_weights(
    model: nn.Module, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> list[SparseWeight]:
    """Return the weights to sparsify, in the model's order.

    Linear, Conv1d/2d/3d, MultiheadAttention projections and transformers' Conv1D; never biases,
    normalisations or embeddings (a weight tied to an embedding is an embedding). A weight tied to another
    is one weight, under its first name.

    Args:
        model: possibly wrapped by DDP or torch.compile; names are those of the inner model.
        include: glob patterns on parameter names ("layer1.*.weight"); any may match.
        exclude: glob patterns; none may match.

    Raises:
        ValueError: a pattern matches nothing, or nothing is left to sparsify.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    found: dict[int, SparseWeight] = {}
    for module_name, module in unwrap(model).named_modules():
        for attribute, parameter, transposed in _weights_of(module):
            if not isinstance(parameter, nn.Parameter) or not parameter.requires_grad:
                continue  # absent, computed by a parametrization, or frozen
            if nn.parameter.is_lazy(parameter):
                raise ValueError(
                    f"layer {module_name!r} has no shape yet: pass a batch through the model first"
                )
            if id(parameter) not in found and id(parameter) not in embeddings:
                name = _COMPILED.sub("", f"{module_name}.{attribute}" if module_name else attribute)
                found[id(parameter)] = SparseWeight(name, own_class(module).__name__, parameter, transposed)
    names = [weight.name for weight in found.values()]
    for field, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if names and not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"{field} pattern {pattern!r} matches no weight; weights: {', '.join(names)}"
                )
    chosen = [
        weight
        for weight in found.values()
        if any(fnmatchcase(weight.name, pattern) for pattern in include)
        and not any(fnmatchcase(weight.name, pattern) for pattern in exclude)
    ]
    if not chosen:
        raise ValueError(
            f"model {type(model).__name__} has nothing to sparsify: it has "
            f"{len(names)} Linear, Conv, MultiheadAttention or Conv1D weights, and none is selected"
        )
    return chosen
