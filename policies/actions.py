"""Converts actions between distributions and environments: bounds, starts, types."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from policies.observations import PLAIN, short


class ActionNumbers:
    """Converts between the action values of the policy's distributions and of the environment.

    Distributions count choices from 0, an environment from its space's `start`. Continuous actions have bounds that the
    distribution does not know.

    Args:
        space: of one action.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space
        self.bits, self.continuous = isinstance(space, spaces.MultiBinary), isinstance(space, spaces.Box)
        self.whole = np.issubdtype(space.dtype, np.integer)
        first = np.asarray(getattr(space, "start", 0))
        self._limits = (space.low, space.high) if isinstance(space, spaces.Box) else (first,) if first.any() else ()
        self._tensors: tuple[Tensor, ...] = ()

    def to_env(self, action: Tensor) -> Tensor:
        """The environment's actions: continuous actions clipped to their bounds, choices and bits in its numbering."""
        if self.bits:
            return action.to(torch.int8)
        if not self.continuous:
            return action + self._on(action.device)[0] if self._limits else action
        action = torch.clamp(action, *self._on(action.device))
        return action.round() if self.whole else action

    def from_env(self, action: Tensor) -> Tensor:
        """The distribution's actions for the environment's; continuous actions are unchanged."""
        return action - self._on(action.device)[0] if self._limits and not self.continuous else action

    def arrays(self, action: Tensor) -> np.ndarray[Any, Any]:
        """The environment's actions as an array of its space's type, `[B, *action_shape]`."""
        array = self.to_env(action).cpu().numpy().reshape((-1, *(self.space.shape or ())))
        return array.astype(self.space.dtype, copy=False)

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        if not self._tensors or self._tensors[0].device != device:
            self._tensors = tuple(torch.as_tensor(limit, device=device) for limit in self._limits)
        return self._tensors


def check_action_space(space: spaces.Space[Any]) -> None:
    """Checks that there is a distribution for the action space.

    Raises:
        ValueError: there is no distribution; the message says what to do.
    """
    if not isinstance(space, PLAIN):
        raise ValueError(
            f"the action space is {short(space)}; expected Box, Discrete, MultiDiscrete or MultiBinary: "
            "rewrite it with gymnasium.wrappers.TransformAction"
        )
    if isinstance(space, spaces.Box) and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"the action space {short(space)} has no bounds; expected finite ones: "
            "set them with gymnasium.wrappers.TransformAction, and leave out ClipAction, which takes them away: the "
            "agent's actions are clipped to them"
        )
    if 0 in (space.shape or ()):
        raise ValueError(f"the action space {short(space)} has no numbers: there is nothing to choose")
