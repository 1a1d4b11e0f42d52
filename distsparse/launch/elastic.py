"""How many workers a run goes on with, where there is no room for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy


class EqualShares(ElasticScalingPolicy):  # type: ignore[misc]  # ray is untyped
    """Ray's elastic policy, over the numbers of workers that have equal shares of a batch.

    Lives in Ray's controller process.
    """

    def __init__(self, scaling: ScalingConfig, allowed: Sequence[int]) -> None:
        super().__init__(scaling)
        self._allowed = allowed

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((count for count in self._allowed if count <= possible), default=0)

    def _get_reserved_resources(self) -> Any:
        """Ask for the nodes that live now: Ray's own answer may be 20 s old, and name the one that died."""
        asked = self._autoscaling_coordinator.get_reserved_resources.remote(
            self._requester_id, recompute=True
        )
        try:
            return ray.get(asked, timeout=5)
        except RayError:  # the next poll asks again
            return None
