"""Criteria: a score for every weight of a layer; higher is kept first and grown first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from distsparse.core.signals import Signals
from distsparse.ops.flags import at
from distsparse.ops.select import Magnitudes, Scores
from distsparse.ops.structure import Pooling, Structure

INITIAL_SIGNALS = frozenset({"grad", "grad_abs", "hessian_grad", "flow", "loss_curve"})
"""signals that an initialization takes from batches"""

UPDATE_SIGNALS = frozenset({"grad", "grad_abs", "grad_ema"})
"""signals that an update has"""


@dataclass(frozen=True)
class Criterion:
    """A named score and the signals that it reads; weights and random bits are free."""

    name: str
    score: Callable[[Signals], Tensor]
    needs: frozenset[str] = frozenset()
    pooling: Pooling = "sum"
    """how a tile's score comes from its weights'"""
    random_ties: bool = False
    """equal scores are ranked at random, not by index"""
    elementwise: bool = False
    """a weight's score depends on that weight's own signals alone, so it can be made for a few of them"""
    magnitude_of: Callable[[Signals], Tensor] | None = None
    """the tensor of which the score is the magnitude, if it is"""

    @property
    def runs_sharded(self) -> bool:
        """Whether the scores of some rows are known to be those that they have in the whole layer."""
        return self.elementwise or self is random

    def of_units(self, signals: Signals, structure: Structure) -> Tensor:
        """Return the scores of a layer's units, (unit rows, unit cols)."""
        if self is random:
            rows, cols = structure.units(signals.weight).shape
            return signals.random_bits((rows, cols))
        scores = structure.pool(self.score(signals), self.pooling)
        return _ties_at_random(scores, signals) if self.random_ties else scores

    def scores(self, signals: Signals, structure: Structure) -> Scores:
        """Return the scores of :meth:`of_units`, made when asked for where the criterion allows it."""
        if self is random:
            return signals.random_scores()
        if not self.elementwise or structure.tile != (1, 1) or self.random_ties:
            return partial(at, self.of_units(signals, structure).reshape(-1))
        if self.magnitude_of is not None:
            return Magnitudes(self.magnitude_of(signals).reshape(-1))
        flat = signals.flat()
        return lambda index: self.score(flat.at(index))


def _ties_at_random(scores: Tensor, signals: Signals) -> Tensor:
    """Return int64 scores in the same order, with 32 random bits below it.

    Raises:
        FloatingPointError: a score is NaN.
    """
    if signals.whole.any(scores.isnan()):
        raise FloatingPointError("a score is NaN")
    return (signals.whole.ranks(scores) << 32) | (
        signals.random_bits((scores.shape[0], scores.shape[1])) & 0xFFFFFFFF
    )


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "a move reads a signal that it does not declare"
    return tensor


magnitude = Criterion(
    "magnitude",
    lambda signals: signals.weight.abs(),
    elementwise=True,
    magnitude_of=lambda signals: signals.weight,
)
"""|w|; a tile's is its L1 norm: what SET, RigL and magnitude pruning keep."""

random = Criterion(
    "random", lambda signals: signals.random_bits((signals.weight.shape[0], signals.weight.shape[1]))
)
"""Uniform among the candidates, without replacement."""

gradient = Criterion(
    "gradient",
    lambda signals: _present(signals.grad_abs),
    frozenset({"grad_abs"}),
    pooling="norm",
    elementwise=True,
    magnitude_of=lambda signals: _present(signals.grad_or_sum),
)
"""|mean over the global batch of ∂L/∂w|: reduced first, then the magnitude (RigL, section 3)."""

momentum = Criterion(
    "momentum",
    lambda signals: _present(signals.grad_ema).abs(),
    frozenset({"grad_ema"}),
    pooling="norm",
    elementwise=True,
    magnitude_of=lambda signals: _present(signals.grad_ema),
)
"""|exponential moving average of the gradient| (SNFS, Dettmers and Zettlemoyer 2019, arXiv:1907.04840)."""

saliency = Criterion(
    "saliency",
    lambda signals: (_present(signals.grad) * signals.weight).abs(),
    frozenset({"grad"}),
    elementwise=True,
)
"""|g · w|, the connection sensitivity of SNIP (Lee et al. 2019, arXiv:1810.02340, equation 3)."""

gradient_flow = Criterion(
    "gradient_flow",
    lambda signals: signals.weight * _present(signals.hessian_grad),
    frozenset({"hessian_grad"}),
    elementwise=True,
)
"""w · Hg: what GraSP keeps most of, the opposite of its removal score -w·Hg sorted ascending.

GraSP (Wang et al. 2020, arXiv:2002.07376, equation 8) removes the weights of the highest -w · Hg, those whose
removal reduces the gradient flow least.
"""

synaptic_flow = Criterion(
    "synaptic_flow",
    lambda signals: _present(signals.flow) * signals.weight.abs(),
    frozenset({"flow"}),
    elementwise=True,
)
"""|w| ∂R/∂|w| with absolute weights and a constant input (SynFlow, arXiv:2006.05467, eq. 2)."""


def magnitude_and_gradient(weight_of_gradient: float) -> Criterion:
    """Return |w| + λ |g| (MEST, Yuan et al. 2021, arXiv:2110.14032, section 3.2)."""
    return Criterion(
        "magnitude_and_gradient",
        lambda signals: signals.weight.abs() + weight_of_gradient * _present(signals.grad_abs),
        frozenset({"grad_abs"}),
        elementwise=True,
    )
