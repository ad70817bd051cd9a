"""Calls of `fast_cells.c`: the part of a step of `fast_sequence.py` after the convolution, on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from policies.native import loops

SOURCE = Path(__file__).with_name("fast_cells.c")
MAX_CHANNELS = 256


def usable(c: Tensor) -> bool:
    """Whether the loops support cells c `[B, C, H, W]`: on a CPU, at most `MAX_CHANNELS`, with a compiler."""
    return c.dim() == 4 and c.shape[1] <= MAX_CHANNELS and loops.usable(SOURCE, c)


class CellLoops:
    """Steps of the cells of one grid. All tensors are `[B, channels, H, W]`, with channels innermost in memory.

    Args:
        reference: c, `[B, C, H, W]`.
        bf16: whether h, pre-activations and their gradients are bfloat16.
        peepholes: `[3, C, H, W]`, or None.
    """

    def __init__(self, reference: Tensor, bf16: bool, peepholes: Tensor | None) -> None:
        self._functions = loops.functions_of(SOURCE, reference)
        self._peepholes = None if peepholes is None else peepholes.detach().permute(0, 2, 3, 1).contiguous()
        batch, channels, *sides = reference.shape
        cells = sides[0] * sides[1]
        self._count, self._sizes = batch * cells, (channels, cells, int(bf16))

    def forward(
        self, gates_h: Tensor, gates_x: Tensor, before: Tensor, gates: Tensor, after: Tensor, h: Tensor
    ) -> None:
        """Computes gates, c and h from both parts of the pre-activations `[B, 4C, H, W]` and the previous c."""
        self._call("forward", gates_h, gates_x, before, self._peepholes, gates, after, h)

    def backward(
        self, gates: Tensor, before: Tensor, after: Tensor, d_h: Tensor, d_out: Tensor, d_c: Tensor, d_sums: Tensor
    ) -> None:
        """Computes the gradients of the pre-activations from d_h + d_out and d_c; d_c is overwritten by that of the
        previous c."""
        self._call("backward", gates, before, after, self._peepholes, d_h, d_out, d_c, d_sums)

    def _call(self, name: str, *tensors: Tensor | None) -> None:
        checked = (one for one in tensors if one is not None and one is not self._peepholes)
        assert all(one.is_contiguous(memory_format=torch.channels_last) for one in checked)
        loops.call(getattr(self._functions, name), tensors, self._sizes, self._count)


def channels_inside(x: Tensor) -> Tensor:
    """`x` `[B, C, H, W]` with its channels innermost in memory."""
    return x.contiguous(memory_format=torch.channels_last)
