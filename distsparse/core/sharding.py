"""What runs on weights that FSDP2 has sharded by rows, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

from distsparse.core.method import Method
from distsparse.core.weights import SparseWeight
from distsparse.dist import ProcessGroupComm, Whole, layout

_WHOLE_SIGNALS = {
    "hessian_grad": "a derivative of gradients",
    "flow": "a pass through absolute weights",
    "loss_curve": "the loss as one layer alone is pruned",
}
"""signals of a first topology that are made from whole weights"""


def whole_of(weights: Sequence[SparseWeight]) -> Whole:
    """Return what adds up numbers over the ranks that weights are sharded over; of this one where none is."""
    parameter = weights[0].parameter
    if not layout.is_sharded(parameter):
        return Whole()
    return Whole(ProcessGroupComm(layout.group_of(parameter)), device=parameter.device)


def check_sharded(method: Method, weights: Sequence[SparseWeight]) -> None:
    """Refuse sharded weights that a method does not run on.

    Raises:
        ValueError: naming what stands against it.
    """
    sharded = [weight for weight in weights if layout.is_sharded(weight.parameter)]
    if not sharded:
        return
    for weight in weights:
        if not layout.is_sharded(weight.parameter):
            raise ValueError(
                f"weight {weight.name!r} is not sharded, but {sharded[0].name!r} is: shard all or none"
            )
    for weight in weights:
        group = layout.group_of(weight.parameter)
        if group != layout.group_of(weights[0].parameter):
            raise ValueError(f"weight {weight.name!r} is sharded over other ranks than {weights[0].name!r}")
        dim, wanted = layout.range_of(weight.parameter)[0], int(weight.transposed)
        if dim != wanted:
            raise ValueError(
                f"weight {weight.name!r} is sharded along dimension {dim}: must be {wanted}, its outputs"
            )
    if problem := obstacle(method):
        raise ValueError(problem)


def obstacle(method: Method) -> str | None:
    """Return why a method does not run on sharded weights, None where it does."""
    if method.structure.tile[0] != 1:
        return (
            f"tile = {method.structure.tile}: on sharded weights a tile must lie in one row, (1, n), "
            "for rows lie on different processes"
        )
    for move in (*method.init, *method.update, *method.last_round):
        for signal, description in _WHOLE_SIGNALS.items():
            if signal in move.needs:
                return f"{move.name} reads {description}, which sharded weights do not give"
        if not move.runs_sharded:
            return f"{move.name} looks at whole layers, of which sharded weights give a process some rows"
    return None
