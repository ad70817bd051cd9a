"""Heads for actions that are maps: a 1×1 convolution on a memory's map, where SB3 has a linear layer on a vector."""

from __future__ import annotations

import math

from gymnasium import spaces
from stable_baselines3.common.distributions import BernoulliDistribution
from torch import Tensor, nn


class MapDistribution(BernoulliDistribution):
    """Yes or no in every cell of `[*parts, H, W]`, by logits that a 1×1 convolution makes of a map `[C, H, W]`.

    Args:
        channels: C.
        shape: of the action; its last two numbers are H and W.
    """

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__(math.prod(shape))
        self.channels, self.parts = channels, math.prod(shape[:-2])

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """From a map `[B, C, H, W]` to logits `[B, parts · H · W]`; the width of the vector output is not needed."""
        return nn.Sequential(nn.Conv2d(self.channels, self.parts, kernel_size=1), nn.Flatten())


def map_distribution(space: spaces.Space, grid: tuple[int, int, int] | None) -> MapDistribution | None:  # type: ignore[type-arg]
    """The distribution over `space`, where it is a map of the size of the memory's `grid` `(C, H, W)`; else None."""
    if grid is None or not isinstance(space, spaces.MultiBinary) or tuple(space.shape[-2:]) != grid[1:]:
        return None
    return MapDistribution(grid[0], tuple(space.shape))


def flattened(space: spaces.Space) -> spaces.Space:  # type: ignore[type-arg]
    """`space` as SB3's distributions take it: a `MultiBinary` of one number."""
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary(math.prod(space.shape))
    return space


def as_rows(action: Tensor, dimensions: int) -> Tensor:
    """Actions `[*leading, *action_shape]` with `dimensions` leading ones as SB3's distributions take them: `[B, n]`.

    A scalar action gives `[B]`.
    """
    action = action.flatten(0, dimensions - 1)
    return action.flatten(1) if action.dim() > 2 else action
