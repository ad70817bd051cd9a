"""Panels that several memories share."""

from __future__ import annotations

import math

from torch import Tensor

from policies.memories.contract import Panel


def vector_panel(
    vectors: Tensor, unit: str = "unit", limits: tuple[float, float] | None = (-1.0, 1.0), about: str = ""
) -> Panel:
    """Vectors `[N, D]` as an image: each is folded into a nearly square block, and the blocks are stacked.

    Unit `i` of a vector is at column `i % width` of its block; 200 units are a 10 x 20 block.
    """
    size = vectors.shape[-1]
    width = next(width for width in range(math.isqrt(size - 1) + 1, size + 1) if size % width == 0)
    folded = vectors.detach().reshape(-1, width)
    return Panel(folded, f"{unit} ({width} per row)", "row", limits, about=about)


def weights_panel(weights: Tensor, about: str, heads: str = "head") -> Panel:
    """Weightings `[heads, slots]` in 0..1; viewers show them over time, one column per step."""
    return Panel(weights, "slot", heads, (0.0, 1.0), "columns", about=about)


def read_panel(weights: Tensor, heads: str = "read head") -> Panel:
    """Read weights `[heads, slots]`."""
    return weights_panel(weights, "read weights of each head", heads)


def write_panel(weights: Tensor, heads: str = "write head") -> Panel:
    """Write weights `[heads, slots]`."""
    return weights_panel(weights, "write weights of each head", heads)
