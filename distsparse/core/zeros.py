"""Keeps what is inactive exactly zero, for any torch optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer

from distsparse.core.channels import Companion, zero_closed
from distsparse.core.weights import SparseWeight, bit_mask, keep_active


class InactiveZeros:
    """Zeroes weights, gradients and optimizer state where a mask is False.

    Of a closed channel also what belongs to it, see :mod:`distsparse.core.channels`. A layer without an
    inactive weight costs nothing.
    """

    def __init__(
        self,
        weights: Mapping[str, SparseWeight],
        optimizer: Optimizer,
        companions: Mapping[str, Sequence[Companion]],
    ) -> None:
        self._weights = weights
        self._optimizer = optimizer
        self._companions = companions
        self._names = {id(weight.parameter): name for name, weight in weights.items()}
        self._bits: dict[str, Tensor] = {}
        self._closed: dict[str, list[tuple[Companion, Tensor]]] = {}

    def set_mask(self, name: str, mask: Tensor, *, full: bool) -> None:
        """Take over a layer's mask, bool (rows, cols); ``full`` where nothing in it is inactive."""
        old = self._bits.pop(name, None)
        self._closed.pop(name, None)
        if not full:
            weight = self._weights[name]
            self._bits[name] = bit_mask(weight.unmatrix(mask), weight.parameter, out=old)
            self._closed[name] = [(each, each.closed(mask)) for each in self._companions.get(name, ())]

    def active_entries(self, parameter: Tensor) -> Tensor | None:
        """Return bool of a parameter's shape, True where active; None where nothing is inactive."""
        bits = self._bits.get(self._names.get(id(parameter), ""))
        return None if bits is None else bits != 0

    def zero_all(self) -> None:
        """Zero all layers' weights and optimizer state."""
        for name in self._bits:
            self.zero(name)

    def zero(self, name: str) -> None:
        """Zero a layer's weights and optimizer state.

        What was inactive before is zero already, so a newly grown position starts at zero as well.
        """
        if (bits := self._bits.get(name)) is None:
            return
        parameter = self._weights[name].parameter
        keep_active(parameter, bits)
        for value in self._optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                keep_active(value, bits)
        for companion, closed in self._closed[name]:
            zero_closed(companion, closed, self._optimizer.state)

    def zero_gradients(self) -> None:
        """Zero all layers' gradients."""
        for name in self._bits:
            self.zero_gradient(name)
            for companion, closed in self._closed[name]:
                if companion.tensor is not None and (gradient := companion.tensor.grad) is not None:
                    gradient.masked_fill_(closed, 0)

    def zero_gradient(self, name: str) -> None:
        """Zero the gradient of a layer's weight."""
        gradient = self._weights[name].parameter.grad
        if gradient is not None and name in self._bits:
            keep_active(gradient, self._bits[name])
