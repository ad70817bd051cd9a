"""A grid's convolutional LSTM over many steps as one function, with its gradient by hand.

The gradient of the recurrent kernel, which autograd sums up from one convolution a step, is one over all steps here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_sigmoid_backward = torch.ops.aten.sigmoid_backward.default
_tanh_backward = torch.ops.aten.tanh_backward.default


def fresh(value: Tensor, step: int, starts: Tensor | None, resets: frozenset[int]) -> Tensor:
    """`value` `[B, ...]` before `step`: zero where an episode starts, which it does at one of `resets` if at all."""
    if starts is None or step not in resets:
        return value
    return value.masked_fill(starts[step].view(-1, *[1] * (value.dim() - 1)), 0.0)


class Recurrence(torch.autograd.Function):
    """h_1 ... h_T of a convolutional LSTM whose inputs have been convolved already; see `LSTMGrid`.

    Args:
        starts, resets: bool `[T, B]` and the steps where it may be true: the state is zero there.
        x_gates: `[T * B, 4C, ...]`, the input's part of i, f, o and the candidate, biases included.
        h, c: `[B, C, ...]`, before the first step.
        kernel: `[4C, C, ...]`, W^hi, W^hf, W^ho, W^hc.
        peepholes: `[3, C, ...]`, W^ci, W^cf, W^co, or None.

    Returns:
        h of every step, `[T * B, C, ...]`; h and c after the last.
    """

    @staticmethod
    def forward(
        ctx: Any,
        starts: Tensor | None,
        resets: frozenset[int],
        x_gates: Tensor,
        h: Tensor,
        c: Tensor,
        kernel: Tensor,
        peepholes: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        first_h, first_c, channels = h, c, h.shape[1]
        convolve = F.conv2d if h.dim() == 4 else F.conv1d
        hidden, cells, taken = [], [], []
        for t, x_part in enumerate(x_gates.view(-1, len(h), *x_gates.shape[1:])):
            h, c = fresh(h, t, starts, resets), fresh(c, t, starts, resets)
            gates = convolve(h, kernel, padding=1).add_(x_part)
            i, f, o, candidate = gates.chunk(4, 1)
            if peepholes is None:
                gates[:, : 3 * channels].sigmoid_()
            else:
                i.addcmul_(peepholes[0], c).sigmoid_()
                f.addcmul_(peepholes[1], c).sigmoid_()
            c = (f * c).addcmul_(i, candidate.tanh_())
            if peepholes is not None:
                o.addcmul_(peepholes[2], c).sigmoid_()
            h = o * c.tanh()
            hidden.append(h)
            cells.append(c)
            taken.append(gates)
        rows = torch.cat(hidden)
        ctx.starts, ctx.resets = starts, resets
        ctx.save_for_backward(kernel, peepholes, first_h, first_c, rows, torch.cat(cells), *taken)
        return rows, h, c

    @staticmethod
    def backward(ctx: Any, d_rows: Tensor, d_h: Tensor, d_c: Tensor) -> Any:
        kernel, peepholes, first_h, first_c, rows, cells, *taken = ctx.saved_tensors
        length, rank = len(taken), kernel.dim() - 2
        convolve = F.conv2d if rank == 2 else F.conv1d
        backwards = kernel.transpose(0, 1).flip(*range(2, 2 + rank))
        steps = (length, *d_h.shape)
        d_rows, cells = d_rows.reshape(steps), cells.view(steps)
        entered_h = [first_h, *rows.view(steps)[:-1]]
        entered_c = [first_c, *cells[:-1]]
        for t in ctx.resets:
            entered_h[t], entered_c[t] = (fresh(part[t], t, ctx.starts, ctx.resets) for part in (entered_h, entered_c))
        squashed = cells.tanh()
        d_gates = d_h.new_empty(length, *taken[0].shape)
        for t in reversed(range(length)):
            i, f, o, candidate = taken[t].chunk(4, 1)
            d_h = d_h + d_rows[t]
            d_o = _sigmoid_backward(d_h * squashed[t], o)
            d_c = d_c + _tanh_backward(d_h * o, squashed[t])
            if peepholes is not None:
                d_c.addcmul_(d_o, peepholes[2])
            d_i, d_f = _sigmoid_backward(d_c * candidate, i), _sigmoid_backward(d_c * entered_c[t], f)
            torch.cat([d_i, d_f, d_o, _tanh_backward(d_c * i, candidate)], 1, out=d_gates[t])
            d_c = d_c * f
            if peepholes is not None:
                d_c.addcmul_(d_i, peepholes[0]).addcmul_(d_f, peepholes[1])
            d_h = convolve(d_gates[t], backwards, padding=1)
            d_h, d_c = (fresh(part, t, ctx.starts, ctx.resets) for part in (d_h, d_c))

        d_peepholes = None
        if peepholes is not None:
            seen = (torch.stack(entered_c), torch.stack(entered_c), cells)  # by i, f and o
            parts = zip(d_gates.chunk(4, 2), seen, strict=False)
            d_peepholes = torch.stack([(d_gate * c).sum((0, 1)) for d_gate, c in parts])
        d_x_gates, ones, zeros = d_gates.flatten(0, 1), [1] * rank, [0] * rank
        _, d_kernel, _ = torch.ops.aten.convolution_backward(
            d_x_gates, torch.cat(entered_h), kernel, None, ones, ones, ones, False, zeros, 1, [False, True, False]
        )
        return None, None, d_x_gates, d_h, d_c, d_kernel, d_peepholes
