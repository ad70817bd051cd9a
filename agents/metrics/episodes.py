"""Returns and lengths of the episodes under way, on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Episodes:
    """Running totals of each environment, from rewards and ends that were read once an iteration."""

    def __init__(self, num_envs: int) -> None:
        self.returns = np.zeros(num_envs, dtype=np.float64)
        self.lengths = np.zeros(num_envs, dtype=np.int64)

    def clear(self) -> None:
        """No episode is under way."""
        self.returns[:] = 0
        self.lengths[:] = 0

    def ended(self, rewards: Array, ends: Array, said: Array | None = None) -> Iterator[dict[str, float]]:
        """Add a rollout and give every episode that ended in it, as SB3's `Monitor` writes it.

        Args:
            rewards: `[T, N]`.
            ends: `[T, N]`; 1 where an episode ended, 2 where it was given up.
            said: `[2, T, N]`, return and length as the environment counts them, NaN where it does not.
        """
        for t, (reward, end) in enumerate(zip(rewards, ends, strict=True)):
            self.returns += reward
            self.lengths += 1
            for index in np.flatnonzero(end == 1):
                counted = np.array([self.returns[index], self.lengths[index]])
                if said is not None and not np.isnan(said[0, t, index]):
                    counted = said[:, t, index]
                yield {"r": float(counted[0]), "l": int(counted[1])}
            self.returns[end > 0] = 0
            self.lengths[end > 0] = 0
