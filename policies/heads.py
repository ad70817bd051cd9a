"""Heads for actions that are maps or places on one: a 1×1 convolution on a memory's map, not a layer on a vector."""

from __future__ import annotations

import math

from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from torch import Tensor, cat, nn


class MapHead(nn.Module):
    """Logits of what a vector decides and of every cell of a map.

    Args:
        width: of the vector.
        numbers: logits that are read from the vector.
        channels: of the map.
        maps: maps of logits that are read from it.
    """

    def __init__(self, width: int, numbers: int, channels: int, maps: int) -> None:
        super().__init__()
        self.vector = nn.Linear(width, numbers) if numbers else None
        self.cells = nn.Conv2d(channels, maps, kernel_size=1)

    def forward(self, parts: tuple[Tensor, Tensor]) -> Tensor:
        """From a vector `[B, F]` and a map `[B, C, H, W]` to logits `[B, numbers + maps · H · W]`."""
        latent, grid = parts
        cells: Tensor = self.cells(grid).flatten(1)
        return cells if self.vector is None else cat([self.vector(latent), cells], 1)


class MapDistribution(BernoulliDistribution):
    """Yes or no in every cell of `[*parts, H, W]`.

    Args:
        channels: of the map it is read from.
        shape: of the action.
    """

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__(math.prod(shape))
        self.channels, self.maps = channels, math.prod(shape[:-2])

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        return MapHead(latent_dim, 0, self.channels, self.maps)


class PlaceDistribution(MultiCategoricalDistribution):
    """Choices, the last of which is a cell of a map.

    Args:
        channels: of the map it is read from.
        choices: how many there are of each; the last is the number of cells.
    """

    def __init__(self, channels: int, choices: list[int]) -> None:
        super().__init__(choices)
        self.channels = channels

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        return MapHead(latent_dim, sum(self.action_dims[:-1]), self.channels, 1)


def map_distribution(
    space: spaces.Space,  # type: ignore[type-arg]
    grid: tuple[int, int, int] | None,
) -> Distribution | None:
    """The distribution over `space`, where that is a map, or a place on one, of the size of a memory's `grid`.

    Args:
        space: of actions.
        grid: `(C, H, W)`, or None where the memory has no map.

    Returns:
        None where the two do not go together.
    """
    if grid is None:
        return None
    channels, height, width = grid
    if isinstance(space, spaces.MultiBinary) and tuple(space.shape[-2:]) == (height, width):
        return MapDistribution(channels, tuple(space.shape))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and space.nvec[-1] == height * width:
        return PlaceDistribution(channels, space.nvec.tolist())
    return None


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
