"""Pure functions on tensors and numbers: selection, allocation, schedules, randomness, digests."""

from distsparse.ops import allocation, counter_rng, digest, schedule, select

__all__ = ["allocation", "counter_rng", "digest", "schedule", "select"]
