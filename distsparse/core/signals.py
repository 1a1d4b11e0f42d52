"""What a criterion may look at in one layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distsparse.ops import counter_rng
from distsparse.ops.flags import at


class _Magnitude:
    """A field that is |grad| unless given; made when read, so that a whole model's never exist together."""

    def __get__(self, signals: Signals | None, owner: type[Signals]) -> Tensor | None:
        if signals is None:
            return None  # the default of the field
        given: Tensor | None = vars(signals)["grad_abs"]
        if given is not None or signals.grad is None:
            return given
        return signals.grad.to(torch.promote_types(signals.grad.dtype, torch.float32)).abs()

    def __set__(self, signals: Signals, value: Tensor | None) -> None:
        vars(signals)["grad_abs"] = value


@dataclass(frozen=True)
class Signals:
    """The tensors of one layer, (rows, cols) unless stated.

    Gradients are means over the global batch, already reduced over ranks.
    """

    weight: Tensor
    key: int
    """Key of this layer's random numbers at this step and for this move."""
    grad: Tensor | None = None
    grad_abs: Tensor | None = _Magnitude()  # type: ignore[assignment]
    """Sum of |grad| over the method's gradient window (the last step alone, |grad|, by default)."""
    grad_ema: Tensor | None = None
    """Exponential moving average of the gradient of every weight, active or not."""
    hessian_grad: Tensor | None = None
    """Hessian times gradient, at the initialization."""
    flow: Tensor | None = None
    """Gradient of SynFlow's data-free objective with respect to |w|, at the initialization."""
    loss_curve: Tensor | None = None
    """float64 (points, 2) of (sparsity, loss increase) as this layer alone is pruned, before step 0."""

    def random_bits(self, shape: tuple[int, int]) -> Tensor:
        """Return 64 random bits (int64) for each of (rows, cols) units: of key and position only."""
        return self.random_bits_at(slice(0, shape[0] * shape[1])).reshape(shape)

    def random_bits_at(self, index: slice | Tensor) -> Tensor:
        """Return :meth:`random_bits` of a range of flat indices, or at int64 indices."""
        if isinstance(index, slice):
            return counter_rng.bits_between(self.key, index.start, index.stop, self.weight.device)
        return counter_rng.bits(self.key, index)

    def flat(self) -> Signals:
        """Return the weight and what has its shape, flat."""
        return self._each(lambda tensor: tensor.reshape(-1))

    def at(self, index: slice | Tensor) -> Signals:
        """Return a range of :meth:`flat` signals, or those at int64 indices."""
        return self._each(lambda tensor: at(tensor, index))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Signals:
        given = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        given.pop("loss_curve", None)
        return Signals(key=self.key, **{name: change(value) for name, value in given.items()})
