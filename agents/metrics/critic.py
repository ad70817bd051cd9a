"""Warns once when the value loss dominates the clipped gradient, so that the agent does not learn."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping

PATIENCE = 20
"""Minimum number of iterations in the moving window."""
STEPS = 10_000
"""Minimum number of environment steps in the window: in a short rollout the explained variance is mostly noise."""
HARD_CLIPPING = 8.0
"""Mean ratio of gradient norm to `max_grad_norm` from which clipping counts as hard."""
USUAL_MAX_GRAD_NORM = 0.5
"""SB3's `max_grad_norm`. With a smaller one nearly every gradient is clipped, whatever the critic does."""


class CriticWatch:
    """Tracks the explained variance and gradient norm of the last iterations."""

    def __init__(self) -> None:
        self.seen: deque[tuple[float, float]] = deque()
        self.warned = False

    def update(
        self, metrics: Mapping[str, float], max_grad_norm: float, normalized: bool = False, steps: int = STEPS
    ) -> None:
        """Adds an iteration's metrics; a learner without a critic is ignored.

        Args:
            metrics: of the iteration, by log name.
            max_grad_norm: the learner's.
            normalized: whether values are learned in normalised units.
            steps: environment steps of the iteration.
        """
        explained = metrics.get("train/explained_variance")
        if explained is None or self.warned:
            return
        patience = max(PATIENCE, -(-STEPS // steps))
        self.seen.append((explained, metrics["train/grad_norm"]))
        if len(self.seen) > patience:
            self.seen.popleft()
        explained, norm = (sum(column) / len(self.seen) for column in zip(*self.seen, strict=True))
        clipped_hard = norm > HARD_CLIPPING * max(max_grad_norm, USUAL_MAX_GRAD_NORM)
        if len(self.seen) == patience and explained <= 0 and clipped_hard:
            self.warned = True
            advice = "lower vf_coef or raise max_grad_norm"
            if not normalized:
                advice = "leave normalize_values on, or set reward_scale so that returns are about 1"
            warnings.warn(
                f"the critic explains nothing (train/explained_variance {explained:.2f} over {patience} iterations) "
                f"while gradients of norm {norm:.3g} are clipped to {max_grad_norm:g}, so the policy hardly learns: "
                f'{advice}; see docs/ppo.md, "The scale of rewards"',
                stacklevel=2,
            )
