"""Keeps what is inactive exactly zero, for any torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from distsparse.core.channels import Companion, zero_closed
from distsparse.core.weights import SparseWeight
from distsparse.dist import Whole
from distsparse.dist.layout import is_sharded, local
from distsparse.ops.keep import Keep
from distsparse.ops.unwritten import place_and_writes

_ALL_EVERY = 32
"""optimizer steps after which all is zeroed anyway: not all writes are counted"""


class InactiveZeros:
    """Zeroes weights, gradients and optimizer state where a mask is False.

    Of a closed channel also what belongs to it, see :mod:`distsparse.core.channels`. A layer without an
    inactive weight costs nothing. Neither does an optimizer step from zero to zero: torch's own SGD and Adam
    make nothing of a weight, a gradient and a state that are zero. What was written to since it was zeroed is
    zeroed again, and everything every few steps, for writes through ``.data`` are not seen.
    """

    def __init__(
        self,
        weights: Mapping[str, SparseWeight],
        optimizer: Optimizer,
        companions: Mapping[str, Sequence[Companion]],
        whole: Whole,
    ) -> None:
        self._weights = weights
        self._optimizer = optimizer
        self._companions = companions
        self._whole = whole
        self._names = {id(weight.parameter): name for name, weight in weights.items()}
        self._kept: dict[str, Keep] = {}
        self._num_steps = 0
        self._zero: dict[str, list[object]] = {}
        self._zero_gradient: dict[str, object] = {}
        self._reduced: dict[str, object] = {}
        self._still_zero: set[str] = set()
        self._closed: dict[str, list[tuple[Companion, Tensor]]] = {}

    def set_mask(self, name: str, mask: Tensor, *, full: bool) -> None:
        """Take over a layer's mask, bool (rows, cols); ``full`` where the whole layer is active."""
        old = self._kept.pop(name, None)
        self._closed.pop(name, None)
        self._zero.pop(name, None)
        self._zero_gradient.pop(name, None)
        self._reduced.pop(name, None)
        if not full:
            weight = self._weights[name]
            self._kept[name] = Keep.of(weight.unmatrix(mask), local(weight.parameter.detach()), old=old)
            companions = self._companions.get(name, ())
            # A norm's entries lie on other ranks than the rows of the layer before it.
            rows = self._whole.rows(~mask.any(1)) if companions else mask
            self._closed[name] = [(each, each.closed(rows)) for each in companions]

    def active_entries(self, parameter: Tensor) -> Tensor | None:
        """Return bool of a parameter's shape, True where active; None where nothing is inactive."""
        kept = self._kept.get(self._names.get(id(parameter), ""))
        return None if kept is None else kept.mask

    def inactive_zeroed(self, parameter: Tensor, gradient: Tensor) -> None:
        """Let :meth:`zero_gradient` pass over a gradient that is zero already, unless it is written to."""
        if (name := self._names.get(id(parameter))) is not None:
            self._reduced[name] = place_and_writes(gradient)

    def forget_gradients(self) -> None:
        """Let go what is known of gradients: the next ones may lie where these have lain."""
        self._zero_gradient.clear()

    def before_optimizer_step(self, *, trusted: bool) -> None:
        """Look which layers the optimizer will leave at zero where they are inactive.

        None unless it is ``trusted`` to see the gradients of now, and nothing else to write to its weights.
        """
        self._num_steps += 1
        looks = trusted and self._num_steps % _ALL_EVERY != 0 and keeps_zeros(self._optimizer)
        self._still_zero = {name for name in self._zero if looks and self._stays_zero(name)}
        self.forget_gradients()

    def after_optimizer_step(self) -> None:
        """Zero what the optimizer may have changed."""
        for name in self._kept:
            if name in self._still_zero:
                self._take_note(name)
            else:
                self.zero(name)

    def zero_all(self) -> None:
        """Zero all layers' weights and optimizer state."""
        for name in self._kept:
            self.zero(name)

    def zero(self, name: str, *, with_gradient: bool = False) -> None:
        """Zero a layer's weights and optimizer state, in one pass, and the gradient of its weight.

        What was inactive before is zero already, so a newly grown position starts at zero as well.
        """
        if (kept := self._kept.get(name)) is None:
            return
        parameter = self._weights[name].parameter
        gradients = [] if parameter.grad is None or not with_gradient else [parameter.grad]
        kept.apply(*map(local, (*(each.detach() for each in self._held(name)), *gradients)))
        self._take_note(name)
        for gradient in gradients:
            self._zero_gradient[name] = place_and_writes(gradient)
        for companion, closed in self._closed[name]:
            zero_closed(companion, closed, self._optimizer.state)

    def zero_gradients(self) -> None:
        """Zero all layers' gradients."""
        for name in self._kept:
            self.zero_gradient(name)
            for companion, closed in self._closed[name]:
                if companion.tensor is not None and (gradient := companion.tensor.grad) is not None:
                    local(gradient).masked_fill_(closed, 0)

    def zero_gradient(self, name: str) -> None:
        """Zero the gradient of a layer's weight."""
        gradient = self._weights[name].parameter.grad
        known = self._reduced.pop(name, None), self._zero_gradient.get(name)
        if gradient is None or name not in self._kept:
            return
        if is_sharded(gradient) or place_and_writes(gradient) not in known:
            self._kept[name].apply(local(gradient))
        self._zero_gradient[name] = place_and_writes(gradient)

    def _held(self, name: str) -> list[Tensor]:
        """Return a layer's weight and the optimizer's state of its shape."""
        parameter = self._weights[name].parameter
        values = self._optimizer.state.get(parameter, {}).values()
        state = [each for each in values if isinstance(each, Tensor) and each.shape == parameter.shape]
        return [parameter, *state]

    def _take_note(self, name: str) -> None:
        """Remember what is zero now where it is inactive."""
        held = self._held(name)
        if not is_sharded(held[0]):  # a shard's writes are counted elsewhere
            self._zero[name] = list(map(place_and_writes, held))

    def _stays_zero(self, name: str) -> bool:
        gradient = self._weights[name].parameter.grad
        return (
            (gradient is None or self._zero_gradient.get(name) == place_and_writes(gradient))
            and self._zero[name] == list(map(place_and_writes, self._held(name)))
            and not self._closed[name]
        )


def keeps_zeros(optimizer: Optimizer) -> bool:
    """Tell whether a step leaves weight and state at +0 wherever these and the gradient are zero."""
    if type(optimizer) not in (SGD, Adam, AdamW):
        return False
    return all(
        isinstance(group["lr"], int | float)
        and math.isfinite(group["lr"])
        # Zero over a denominator that is zero in the weight's precision is NaN.
        and all(group.get("eps", 1) >= _least(weight) for weight in group["params"])
        and not group.get("capturable")  # another denominator
        and not group["maximize"]  # momentum of -0
        for group in optimizer.param_groups
    )


def _least(weight: Tensor) -> float:
    return torch.finfo(weight.dtype).tiny if weight.is_floating_point() else 0.0
