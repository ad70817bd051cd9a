"""`Preview`: steps of an environment whose observations are known before its actions, to be taken all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Obs = Tensor | dict[str, Tensor]


class Taken(NamedTuple):
    """T steps of N environments, taken at once."""

    obs: Obs
    """The observation after them, `[N, ...]`; the first of the next episode if `ended`."""
    rewards: Tensor
    """Float32 `[T, N]`."""
    ended: bool
    """Whether all episodes ended with the last step; none ended before."""
    metrics: dict[str, tuple[Tensor, Tensor]]
    """The task's metrics (`TensorEnv._measure`), amounts and counts `[T, N]`."""


class Preview(NamedTuple):
    """The next T steps of N environments, as far as they do not depend on actions."""

    obs: Obs
    """`[T, N, ...]`, the current observation first."""
    targets: Tensor
    """Right actions `[T, N, *action_shape]`."""
    weights: Tensor
    """Their weights, float32 `[T, N]` or `[T, N, parts]`."""
    take: Callable[[Tensor], Taken]
    """Takes the steps with actions `[T, N, *action_shape]`."""
