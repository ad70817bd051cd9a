"""Returns and lengths of running episodes, on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Episodes:
    """Running return and length of each environment, updated once per iteration."""

    def __init__(self, num_envs: int) -> None:
        self.returns = np.zeros(num_envs, dtype=np.float64)
        self.lengths = np.zeros(num_envs, dtype=np.int64)

    def clear(self) -> None:
        """Forgets all running episodes."""
        self.returns[:] = 0
        self.lengths[:] = 0

    def ended(self, rewards: Array, ends: Array, stats: Array | None = None) -> Iterator[dict[str, float]]:
        """Adds a rollout and returns every episode that ended in it, in the format of SB3's `Monitor`.

        Args:
            rewards: `[T, N]`.
            ends: `[T, N]`; 1: the episode ended, 2: it was aborted.
            stats: `[2, T, N]`, return and length as reported by the environment; NaN where it reports none.
        """
        for t, (reward, end) in enumerate(zip(rewards, ends, strict=True)):
            self.returns += reward
            self.lengths += 1
            for index in np.flatnonzero(end == 1):
                counted = np.array([self.returns[index], self.lengths[index]])
                if stats is not None and not np.isnan(stats[0, t, index]):
                    counted = stats[:, t, index]
                yield {"r": float(counted[0]), "l": int(counted[1])}
            self.returns[end > 0] = 0
            self.lengths[end > 0] = 0
