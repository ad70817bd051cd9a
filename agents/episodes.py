"""Returns and lengths of the episodes under way, on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Episodes:
    """Running totals of each copy, from rewards and ends that were read once an iteration."""

    def __init__(self, num_envs: int) -> None:
        self.returns = np.zeros(num_envs, dtype=np.float64)
        self.lengths = np.zeros(num_envs, dtype=np.int64)

    def clear(self) -> None:
        """No episode is under way."""
        self.returns[:] = 0
        self.lengths[:] = 0

    def ended(self, rewards: Array, ends: Array) -> Iterator[dict[str, float]]:
        """Add a roll-out, `[T, N]` each, and give every episode that ended in it, as SB3's `Monitor` writes it."""
        for reward, ended in zip(rewards, ends, strict=True):
            self.returns += reward
            self.lengths += 1
            for index in np.flatnonzero(ended):
                yield {"r": float(self.returns[index]), "l": int(self.lengths[index])}
            self.returns[ended] = 0
            self.lengths[ended] = 0
