"""Worlds for mapping: random mazes and random cells, walks through them, and patches that can be compared."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right


def random_maze(num_envs: int, size: int, complexity: float, density: float, generator: torch.Generator) -> Tensor:
    """Walls `[num_envs, size, size]` (bool) that grow from random even cells, inside a ring of wall.

    The routine that the multigrid paper's program takes from Wikipedia's article on mazes: `density * (size // 2)²`
    times a wall starts at a random cell of even row and column (which may be on the ring) and is led on
    `5 * complexity * 2 size` times: to a random one of the even cells two away, which it joins if nothing stands there,
    and else stays where it is.
    """
    device = generator.device
    half = size // 2
    walls = torch.zeros(num_envs, size * size, dtype=torch.bool, device=device)
    ring = torch.zeros(size, size, dtype=torch.bool, device=device)
    ring[0] = ring[-1] = ring[:, 0] = ring[:, -1] = True
    walls |= ring.flatten()
    rows = torch.arange(num_envs, device=device)
    leaps = _leaps(device)
    true = torch.ones((), dtype=torch.bool, device=device)
    for _ in range(int(density * half * half)):
        place = 2 * torch.randint(half + 1, (num_envs, 2), generator=generator, device=device)
        walls[rows, place[:, 0] * size + place[:, 1]] = true
        for _ in range(int(complexity * 5 * 2 * size)):
            beyond = place[:, None] + leaps  # [N, 4, 2]
            inside = ((beyond >= 0) & (beyond < size)).all(2)
            chance = torch.rand(num_envs, 4, generator=generator, device=device)
            choice = (chance * inside).argmax(1)
            there = beyond[rows, choice]
            at = there[:, 0] * size + there[:, 1]
            free = ~walls[rows, at]
            between = place + leaps[choice] // 2
            walls[rows, at] = true
            middle = between[:, 0] * size + between[:, 1]
            walls[rows, middle] = walls[rows, middle] | free
            place = torch.where(free[:, None], there, place)
    return walls.view(num_envs, size, size)


@functools.cache
def _leaps(device: torch.device) -> Tensor:
    # made once: a reset in a CUDA graph copies nothing from the host
    return torch.tensor(MOVES, device=device) * 2


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


def patch_codes(walls: Tensor, width: int) -> Tensor:
    """A code for every `width` x `width` patch: equal codes, equal patches.

    Args:
        walls: bool `[N, S, S]`.
        width: odd, at most 9.

    Returns:
        Exact whole numbers `[N, keys, S - width + 1, S - width + 1]`: float64 of 41 cells each, or float32 of up to 24.
    """
    cells = width * width
    keys = -(-cells // 41)
    weights = torch.zeros(keys, cells, dtype=torch.float64, device=walls.device)
    for cell in range(cells):
        weights[cell // 41, cell] = 2.0 ** (cell % 41)
    codes = F.conv2d(walls[:, None].double(), weights.view(keys, 1, width, width))
    return codes.float() if cells < 24 else codes


def offsets(width: int, size: int, device: torch.device) -> Tensor:
    """What to add to the flat index of a cell for those of the patch around it, row by row, `[width²]`."""
    reach = torch.arange(width, device=device) - width // 2
    return (reach[:, None] * size + reach).flatten()
