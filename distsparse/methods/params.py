"""Every parameter of a method, declared once: type, range, description.

A factory's keyword gives the default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distsparse.core.allocators import AllocationName, UpdateAllocationName
from distsparse.core.growth import GrowInit as GrowInitName
from distsparse.core.ticket import Start
from distsparse.ops.allocation import SensitivityNorm
from distsparse.ops.schedule import Schedule, constant, cosine, inverse_power, linear

Sparsity = Annotated[float, Field(ge=0, lt=1, description="inactive fraction of the sparsified weights")]
DeltaT = Annotated[int, Field(gt=0, description="optimizer steps between mask updates (ΔT)")]
Alpha = Annotated[
    float, Field(gt=0, le=1, description="fraction of a layer's active weights dropped by an update (α)")
]
TEnd = Annotated[
    float,
    Field(
        gt=0,
        description="last step that may update the masks: up to 1 a fraction of the run, above 1 a step",
    ),
]
AlphaSchedule = Annotated[
    Literal["constant", "cosine", "linear", "inverse_power"],
    Field(description="how α falls from its value at the start to T_end"),
]
Allocation = Annotated[AllocationName, Field(description="how active weights are split among layers")]
WeightAllocation = Annotated[
    Literal["uniform", "uniform_first_dense", "er", "erk", "global_magnitude", "lamp"],
    Field(description="how active weights are split among layers, without gradients"),
]
PruneAllocation = Annotated[
    UpdateAllocationName, Field(description="how active weights are split among layers at every prune")
]
AllocationPower = Annotated[
    float,
    Field(ge=0, le=10, description="power of the densities of allocation er and erk only; 0 is uniform"),
]
Norm = Annotated[
    SensitivityNorm, Field(description="norm of a layer's gradient, for allocation sensitivity only")
]
InitialSparsity = Annotated[float, Field(ge=0, lt=1, description="sparsity at the start of the schedule")]
TStart = Annotated[
    float, Field(ge=0, lt=1, description="fraction of the run before which the masks are not updated")
]
Group = Annotated[
    Literal["layer", "row"] | Annotated[int, Field(gt=1)],
    Field(
        description="scope of a fixed count: layer, row (constant fan-in), or M for N of every M inputs. "
        "Every group holds a whole number: a layer's density is rounded to a multiple of 1/M, at least 1/M; "
        "for a true 2:4 network take sparsity 0.5 with allocation uniform"
    ),
]
TileSize = Annotated[int, Field(ge=1)]
Tile = Annotated[
    tuple[TileSize, TileSize], Field(description="rows and columns of weights that live and die together")
]
Gamma = Annotated[
    float, Field(ge=0, le=1, description="a neuron with fewer salient weights than γ · fan-in is ablated")
]
GrowScale = Annotated[float, Field(ge=0, description="weight of |gradient| beside |weight| in the drop (λ)")]
Temperature = Annotated[
    float, Field(gt=0, description="divides the logits while the first topology is chosen")
]
InitRounds = Annotated[int, Field(gt=0, description="rounds in which the initial sparsity is reached")]
GradAccumulation = Annotated[
    int, Field(gt=0, description="steps before an update over which |gradient| is summed for growth")
]
ExcludeDropped = Annotated[
    bool, Field(description="a weight dropped by an update is not grown again by the same update")
]
GrowInit = Annotated[
    GrowInitName,
    Field(
        description="start of newly grown weights: zeros, or normal with a tenth of the standard deviation "
        "of He's initialization"
    ),
]
SkipOptimizerStep = Annotated[bool, Field(description="an update takes the place of the optimizer step")]
PruneFraction = Annotated[
    float, Field(gt=0, lt=1, description="fraction of the remaining weights that each round prunes")
]
RewindTo = Annotated[
    float,
    Field(ge=0, lt=1, description="fraction of the first round whose weights the later rounds start from"),
]
Control = Annotated[
    Literal["none", "reinit", "shuffle"],
    Field(description="last round from another initialization, or with the masks shuffled in each layer"),
]
Source = Annotated[
    str, Field(min_length=1, description="another trial's folder of checkpoints, or one checkpoint")
]
TicketStart = Annotated[
    Start, Field(description="weights to start from: the other run's initial or trained ones, or random ones")
]
ShuffleMasks = Annotated[bool, Field(description="put each layer's active weights at random positions")]


def drop_fraction(name: AlphaSchedule, alpha: float) -> Schedule:
    """Return the drop fraction over t / T_end by the schedule's name."""
    match name:
        case "constant":
            return constant(alpha)
        case "cosine":
            return cosine(alpha)
        case "linear":
            return linear(alpha)
        case "inverse_power":
            return inverse_power(alpha)
