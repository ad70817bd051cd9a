"""Positions of blocks in Kanerva++'s memory image, and the bilinear weights by which they are written and read.

Block allocation after Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021. The paper allocates blocks when reading; here
blocks are also written at their keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def block_places(keys: Tensor, max_distance: float) -> Tensor:
    """Centres of blocks at `keys`, in coordinates in which the memory's corner cells are at −1 and 1.

    Centres of standard normal keys are uniform from −max_distance to max_distance.

    Args:
        keys: y, of any shape.
        max_distance: maximum distance of a centre from the middle.
    """
    return max_distance * torch.erf(keys / math.sqrt(2))


def max_distance_within(block_size: int, memory_size: int) -> float:
    """Maximum distance of a block's centre from the middle for which the block lies within the memory."""
    return 1 - (block_size - 1) / (memory_size - 1)


def offset_weights(offsets: Tensor, span: float, block_size: int, memory_size: int) -> Tensor:
    """Bilinear weights between the rows of a block and those of the memory, eq. (9) for a block at the memory's scale.

    Args:
        offsets: `[...]`; the first row of a block is `span · offsets` rows below the memory's first row.
        span: rows between the first row of a block at offset 0 and that of a block at offset 1.
        block_size, memory_size: numbers of rows.

    Returns:
        `[..., block_size, memory_size]`: 1 where a block row and a memory row coincide, falling linearly to 0 at a
        distance of one row.
    """
    rows = _rows(block_size, memory_size, offsets.device, offsets.dtype)
    return (1 - torch.add(rows, offsets[..., None, None], alpha=span).abs()).relu()


def _rows(block_size: int, memory_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Distances of the rows of a block at offset 0 from the memory's rows, `[block_size, memory_size]`."""
    rows = torch.arange(block_size, device=device, dtype=dtype)
    return rows.unsqueeze(1) - torch.arange(memory_size, device=device, dtype=dtype)
