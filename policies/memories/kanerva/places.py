"""Positions of blocks in Kanerva++'s memory image, and the bilinear weights by which they are written and read.

The block allocation of Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021, as writing: the paper allocates when it
reads; here blocks are also written at their keys.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def block_places(keys: Tensor, room: float) -> Tensor:
    """Centres of blocks in −1..1, where the memory's corner cells are, for keys of any shape.

    Standard normal keys are uniform from −room to room.

    Args:
        keys: y.
        room: the farthest that a centre may be from the middle.
    """
    return room * torch.erf(keys / math.sqrt(2))


def inner_room(block_size: int, memory_size: int) -> float:
    """How far from the middle the centre of a block may be, so that all of the block lies within the memory."""
    return 1 - (block_size - 1) / (memory_size - 1)


def offset_weights(offsets: Tensor, room: float, block_size: int, memory_size: int) -> Tensor:
    """Bilinear weights between the rows of a block and those of the memory, eq. (9) for a block at the memory's scale.

    Args:
        offsets: of blocks whose first row lies `room · offsets` rows from the memory's first, `[...]`.

    Returns:
        `[..., block_size, memory_size]`: 1 where a row of the block lies on one of the memory, falling to 0 a row away.
    """
    rows = _rows(block_size, memory_size, offsets.device, offsets.dtype)
    return (1 - torch.add(rows, offsets[..., None, None], alpha=room).abs()).relu()


@functools.cache
def _rows(block_size: int, memory_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """How far the rows of a block at the memory's first row lie from the memory's, `[block_size, memory_size]`."""
    rows = torch.arange(block_size, device=device, dtype=dtype)
    return rows.unsqueeze(1) - torch.arange(memory_size, device=device, dtype=dtype)
