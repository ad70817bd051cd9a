"""Worlds for Mapping: its arguments, random mazes and cells, the spiral walk, and codes for comparing patches."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

TRAJECTORIES = ("spiral", "random", "explore")
WORLDS = ("maze", "cells")
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right


def check_arguments(
    size: int,
    trajectory: str,
    queries: tuple[int, ...],
    world: str,
    complexity: float,
    density: float,
    horizon: int,
    map_size: int,
    position_scale: float,
) -> None:
    """Raises a ValueError if an argument of `Mapping` is out of its range."""
    if size < 5 or size % 2 == 0:
        raise ValueError(f"size is {size}, expected an odd number of at least 5")
    if trajectory not in TRAJECTORIES:
        raise ValueError(f"trajectory is {trajectory!r}, expected one of {TRAJECTORIES}")
    if world not in WORLDS:
        raise ValueError(f"world is {world!r}, expected one of {WORLDS}")
    if not queries or len(set(queries)) < len(queries) or not set(queries) <= {3, 9} or (9 in queries and size < 11):
        raise ValueError(f"queries are {queries}, expected 3, 9 or both, and 9 only with size >= 11 (it is {size})")
    if not 0 <= density <= 1 or horizon < 1:
        raise ValueError(
            f"density is {density}, horizon {horizon}; expected a density of 0 to 1, a horizon of at least 1"
        )
    if not 0 <= complexity < math.inf:
        raise ValueError(f"complexity is {complexity}, expected a finite number of at least 0")
    if not math.isfinite(position_scale):
        raise ValueError(f"position_scale is {position_scale}, expected a finite number")
    if map_size < size - 2:
        raise ValueError(f"map_size is {map_size}, expected at least {size - 2}, the places of a row")


def random_maze(num_envs: int, size: int, complexity: float, density: float, generator: torch.Generator) -> Tensor:
    """Walls `[num_envs, size, size]` (bool) that grow from random even cells, inside a ring of wall.

    The algorithm of the multigrid paper's program, from Wikipedia's article on mazes. `density * (size // 2)²` walls
    start at random cells of even row and column, which may be on the ring. Each is extended up to
    `5 * complexity * 2 size` times: a random cell two away is drawn, and joined to the wall if it is free.
    All random numbers are drawn in one call, and an extension takes six operations.
    """
    device = generator.device
    half = size // 2
    count, length = int(density * half * half), int(complexity * 5 * 2 * size)
    ring = torch.zeros(size, size, dtype=torch.bool, device=device)
    ring[0] = ring[-1] = ring[:, 0] = ring[:, -1] = True
    walls = ring.flatten().repeat(num_envs, 1)
    starts = 2 * torch.randint(half + 1, (count, num_envs, 2), generator=generator, device=device)
    starts = starts[..., 0] * size + starts[..., 1]
    choices = torch.randint(_CHOICES, (count, length, num_envs), generator=generator, device=device)
    leaps = _leaps(size, device)
    for start, steps in zip(starts, choices, strict=True):
        at = start[:, None]
        walls.scatter_(1, at, True)
        for choice in steps:
            # the cell two away, and the cell between
            leap = leaps.index_select(0, torch.add(choice, at[:, 0], alpha=_CHOICES))
            target = leap[:, :1]
            occupied = walls.gather(1, target)
            walls.scatter_(1, torch.where(occupied, target, leap), True)
            at = torch.where(occupied, at, target)
    return walls.view(num_envs, size, size)


_CHOICES = 12
"""Number of random choices, divisible by 2, 3 and 4 neighbours."""


@functools.cache
def _leaps(size: int, device: torch.device) -> Tensor:
    """The flat indices of an even cell two away and of the cell between: `[size² * 12, 2]`, twelve rows per cell."""
    table = torch.zeros(size * size, _CHOICES, 2, dtype=torch.int64)
    for row in range(0, size, 2):
        for column in range(0, size, 2):
            beyond = [(row + 2 * down, column + 2 * right) for down, right in MOVES]
            inside = [(r, c) for r, c in beyond if 0 <= r < size and 0 <= c < size]
            pairs = [(r * size + c, (row + r) // 2 * size + (column + c) // 2) for r, c in inside]
            table[row * size + column] = torch.tensor(pairs).repeat(_CHOICES // len(pairs), 1)
    # cached, so that a reset in a CUDA graph copies nothing from the host
    return table.flatten(0, 1).to(device)


def random_cells(num_envs: int, size: int, density: float, generator: torch.Generator) -> Tensor:
    """Walls `[num_envs, size, size]` (bool): each cell inside the ring is one with probability `density`."""
    chance = torch.rand(num_envs, size, size, generator=generator, device=generator.device)
    walls = chance < density
    walls[:, 0] = walls[:, -1] = walls[:, :, 0] = walls[:, :, -1] = True
    return walls


def spiral(size: int) -> list[tuple[int, int]]:
    """Rows and columns from the centre outwards over all `(size - 2)²` cells inside the ring."""
    row = column = size // 2
    path = [(row, column)]
    run = 0
    while len(path) < (size - 2) ** 2:
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            run += right != 0  # 1, 1, 2, 2, 3, 3, ...
            for _ in range(run):
                row, column = row + down, column + right
                path.append((row, column))
    return path[: (size - 2) ** 2]


def cells_of(flat: Tensor, size: int) -> Tensor:
    """Rows and columns `[..., 2]` of flat indices `[...]`."""
    return torch.stack([flat // size, flat % size], -1)


def patch_codes(walls: Tensor, width: int) -> Tensor:
    """A code for every `width` x `width` patch: equal codes, equal patches.

    Args:
        walls: bool `[N, S, S]`.
        width: odd, at most 9.

    Returns:
        Integers `[N, keys, S - width + 1, S - width + 1]`, at least 0: int64 of up to 54 cells each; of 3 x 3 cells
        int16, bit 3 r + c for row r and column c.
    """
    bits = torch.arange(width, device=walls.device)
    rows = (walls.long().unfold(2, width, 1) << bits).sum(3)  # of each stretch of a row, as a number
    codes = []
    for first in range(0, width, 6):
        some = range(first, min(first + 6, width))
        parts = [rows[:, row : row + walls.shape[1] - width + 1] << width * (row - first) for row in some]
        codes.append(torch.stack(parts).sum(0))
    found = torch.stack(codes, 1)
    return found.to(torch.int16) if width == 3 else found  # int16 compares faster


def patches_of_codes(device: torch.device) -> Tensor:
    """Every 3 x 3 patch, by its code: float32 `[512, 4, 3, 3]`, planes free, wall and two of zeros."""
    wall = (torch.arange(512, device=device)[:, None] >> torch.arange(9, device=device) & 1).view(-1, 3, 3).float()
    return torch.stack([1 - wall, wall, torch.zeros_like(wall), torch.zeros_like(wall)], 1)


def offsets(width: int, size: int, device: torch.device) -> Tensor:
    """Offsets from a cell's flat index to those of the patch around it, row by row, `[width²]`."""
    reach = torch.arange(width, device=device) - width // 2
    return (reach[:, None] * size + reach).flatten()
