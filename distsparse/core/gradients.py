"""What a method remembers of the gradients between its updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distsparse.core.method import Method
from distsparse.core.weights import SparseWeight
from distsparse.dist import layout

EMA_DECAY = 0.9
"""of ``grad_ema``: the momentum of SNFS's experiments"""


def _add(sums: dict[str, Tensor], name: str, term: Tensor) -> None:
    if name in sums:
        sums[name].add_(term)
    else:
        sums[name] = term


class GradientMemory:
    """Sums of |gradient| over the window before an update, and moving averages, as the method needs them.

    All from the reduced gradients, so equal on all ranks.
    """

    def __init__(self, weights: Mapping[str, SparseWeight], method: Method, total_steps: int) -> None:
        self._weights = weights
        self._method = method
        self._total_steps = total_steps
        self._abs: dict[str, Tensor] = {}
        self._ema: dict[str, Tensor] = {}

    @property
    def _summed(self) -> bool:
        """Whether |gradient| is summed over several steps."""
        return "grad_abs" in self._method.update_needs and self._method.gradient_window > 1

    def wants(self, step: int, *, pending: bool) -> bool:
        """Tell whether a step's dense gradient matters."""
        needs = self._method.update_needs
        if "grad_ema" in needs and step <= self._method.stop_step(self._total_steps):
            return True
        window = range(step, step + self._method.gradient_window)
        return bool(needs & {"grad", "grad_abs"}) and (
            pending or any(self._method.is_update_step(later, self._total_steps) for later in window)
        )

    def current(self, step: int) -> dict[str, Tensor]:
        """Return each weight's gradient as (rows, cols), of a sharded one the rows here.

        Raises:
            ValueError: a weight has none.
        """
        gradients = {}
        for name, weight in self._weights.items():
            gradient = weight.gradient_rows
            if gradient is None:
                raise ValueError(
                    f"weight {name!r} has no gradient at step {step}: call step() after backward() "
                    "and before zero_grad()"
                )
            gradients[name] = gradient
        return gradients

    def add(self, step: int) -> None:
        """Take in a step's gradients."""
        averaged = "grad_ema" in self._method.update_needs
        for name, gradient in self.current(step).items():
            # A long window of half-precision terms would lose the small ones.
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            if self._summed:
                _add(self._abs, name, gradient.abs())
            if averaged:
                if name in self._ema:
                    self._ema[name].mul_(EMA_DECAY)
                _add(self._ema, name, (1 - EMA_DECAY) * gradient)

    def signals(self, step: int) -> dict[str, dict[str, Tensor]]:
        """Return the signals of an update by layer and signal, and begin a new window.

        With a window of one step, |gradient| is left to :class:`Signals`, which makes a layer's when read.
        """
        needs = self._method.update_needs
        found: dict[str, dict[str, Tensor]] = {name: {} for name in self._weights}
        wanted = "grad" in needs or ("grad_abs" in needs and not self._summed)
        current = self.current(step) if wanted else {}
        for kind, values in (("grad", current), ("grad_abs", self._abs), ("grad_ema", self._ema)):
            for name, value in values.items():
                found[name][kind] = value
        self._abs = {}
        return found

    def not_finite(self) -> Tensor:
        """Return a 0-dim bool: any gradient here has a NaN or an infinity."""
        found = [weight.gradient_rows for weight in self._weights.values()]
        gradients = [gradient for gradient in found if gradient is not None]
        if not gradients:
            return torch.tensor(False, device=next(iter(self._weights.values())).parameter.device)
        # A sum is finite only if every term is, and costs one pass without a temporary of the layer's size.
        # It may overflow in half precision, so it runs in float32 at least; a false alarm defers one step.
        device = gradients[0].device
        sums = [g.sum(dtype=torch.promote_types(g.dtype, torch.float32)).to(device) for g in gradients]
        return ~torch.isfinite(torch.stack(sums)).all()

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered."""

        def copied(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {n: layout.row_shard(v.clone(), self._weights[n].parameter) for n, v in values.items()}

        return {"grad_abs": copied(self._abs), "grad_ema": copied(self._ema)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""

        def moved(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            parameters = {name: weight.parameter for name, weight in self._weights.items()}
            return {
                name: layout.own_rows(value, parameters[name]).to(parameters[name].device, copy=True)
                for name, value in values.items()
            }

        self._abs, self._ema = moved(state["grad_abs"]), moved(state["grad_ema"])
