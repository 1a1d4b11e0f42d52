"""Optimizers and learning-rate schedules by name."""

from distsparse.optim.change import Options, change
from distsparse.optim.fine_tuning import MODES, FineTuningLR, fine_tuning, monitored
from distsparse.optim.learning_rate import ClosedFormLR, constant, cosine, exponential, one_cycle, step
from distsparse.optim.registry import build_optimizer, build_schedule, optimizers, schedules
from distsparse.optim.torch_optimizers import NOT_SHARDED, adam, adamw, sgd

__all__ = [
    "MODES",
    "NOT_SHARDED",
    "ClosedFormLR",
    "FineTuningLR",
    "Options",
    "adam",
    "adamw",
    "build_optimizer",
    "build_schedule",
    "change",
    "constant",
    "cosine",
    "exponential",
    "fine_tuning",
    "monitored",
    "one_cycle",
    "optimizers",
    "schedules",
    "sgd",
    "step",
]
