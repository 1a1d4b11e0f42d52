"""What a criterion may look at in one layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distsparse.dist import Whole
from distsparse.ops import counter_rng
from distsparse.ops.flags import at
from distsparse.ops.select import RandomBits


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
    """The tensors of one layer, (rows, cols) unless stated; of a sharded layer the rows of this process.

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
    first_unit: int = 0
    """place of the first unit here in the whole layer, row-major"""
    whole: Whole = Whole()  # noqa: RUF009  has no state
    """for sums over the whole layer"""

    def random_bits(self, shape: tuple[int, int]) -> Tensor:
        """Return 64 random bits (int64) for each of (rows, cols) units: of key and position only."""
        return self.random_scores()(slice(0, shape[0] * shape[1])).reshape(shape)

    def random_scores(self) -> RandomBits:
        """Return :meth:`random_bits` by flat index."""
        return RandomBits(counter_rng.key_from(self.key, self.first_unit), self.weight.device)

    @property
    def grad_or_sum(self) -> Tensor | None:
        """What ``grad_abs`` is the magnitude of: itself where it was summed, else the gradient."""
        given: Tensor | None = vars(self)["grad_abs"]
        return self.grad if given is None else given

    def flat(self) -> Signals:
        """Return the weight and what has its shape, flat."""
        return self._each(lambda tensor: tensor.reshape(-1))

    def at(self, index: slice | Tensor) -> Signals:
        """Return a range of :meth:`flat` signals, or those at int64 indices."""
        return self._each(lambda tensor: at(tensor, index))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Signals:
        changed: dict[str, Any] = {
            name: change(value)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "loss_curve"
        }
        return Signals(key=self.key, first_unit=self.first_unit, whole=self.whole, **changed)
