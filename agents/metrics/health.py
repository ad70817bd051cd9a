"""Warns once when the policy stays random, stops exploring early, or takes updates that are far too large."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Mapping

import numpy as np
from gymnasium import spaces

PATIENCE = 50
"""Iterations in the moving window."""
ADVICE_PAGE = "see docs/not-learning.md"


class PolicyWatch:
    """Tracks the entropy and the KL divergence of the last iterations.

    Args:
        space: the action space; if it has no maximum entropy (`Box`), only the KL divergence is tracked.
        target_kl: the learner's; None: 0.05.
    """

    def __init__(self, space: spaces.Space, target_kl: float | None = None) -> None:  # type: ignore[type-arg]
        self.max_entropy, self.target_kl = maximum_entropy(space), target_kl or 0.05
        self.entropies: deque[float] = deque(maxlen=PATIENCE)
        self.divergences: deque[float] = deque(maxlen=PATIENCE)
        self.warned: set[str] = set()

    def update(self, metrics: Mapping[str, float]) -> None:
        """Adds an iteration's metrics, by name; those that a learner does not log are ignored."""
        if "train/entropy" in metrics and self.max_entropy:
            self.entropies.append(metrics["train/entropy"] / self.max_entropy)
        if "train/approx_kl" in metrics:
            self.divergences.append(metrics["train/approx_kl"])
        if len(self.entropies) == PATIENCE and min(self.entropies) > 0.995:
            self._warn(
                "random",
                f"the policy is as random as at the start (train/entropy at {100 * self.entropies[-1]:.1f} % of its "
                f"maximum over {PATIENCE} iterations): check that rewards reach it, or lower ent_coef",
            )
        if len(self.entropies) == PATIENCE and max(self.entropies) < 0.001:
            self._warn(
                "decided",
                f"the policy no longer explores (train/entropy below 0.1 % of its maximum over {PATIENCE} iterations): "
                "if the return is low, raise ent_coef or lower learning_rate",
            )
        if len(self.divergences) == PATIENCE and float(np.median(self.divergences)) > 4 * self.target_kl:
            self._warn(
                "far",
                f"updates are too large (train/approx_kl {np.median(self.divergences):.3g} in the median of {PATIENCE} "
                f"iterations, {self.target_kl:g} is usual): lower learning_rate or n_epochs",
            )

    def _warn(self, what: str, text: str) -> None:
        if what not in self.warned:
            self.warned.add(what)
            warnings.warn(f"{text}; {ADVICE_PAGE}", stacklevel=3)


def maximum_entropy(space: spaces.Space) -> float | None:  # type: ignore[type-arg]
    """Entropy of uniformly random actions, in nats; None if the space has no maximum."""
    if isinstance(space, spaces.Discrete):
        return math.log(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return float(np.log(space.nvec).sum())
    if isinstance(space, spaces.MultiBinary):
        return math.log(2) * int(np.prod(space.shape))
    return None
