"""The custom backward of LSTM and GRU over time, from a tape of `fast_sequence.py`.

Factors that do not depend on the gradient are computed for blocks of steps that fit the cache. A backward step is then
one matrix product and three or four in-place operations. The gradient of the recurrent weights is one product over all
steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.recurrent import fast_native as recurrent_native
from policies.memories.recurrent.fast_sequence import LSTMTape, Tape

BLOCK = 40_000
"""Size of one gate in a block of the backward pass; seven such arrays are about 1 MB, the size of an L2 cache."""


class RecurrentSequence(torch.autograd.Function):
    """The steps on a tape, with a custom backward.

    Inputs: the tape; and for their gradients the layer's input `[T, B, F]`, its state tensors `[B, H]` and its
    parameters.

    Outputs: the state tensors after every step, `[T, B, H]` each.
    """

    @staticmethod
    def forward(ctx: Any, tape: Tape, xs: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        states = [values[: tape.length + 1] for values in tape.states]
        ctx.save_for_backward(xs, tape.w_x, tape.w_h, tape.active[: tape.length], tape.extra[: tape.length], *states)
        ctx.starts, ctx.lstm = tape.starts, isinstance(tape, LSTMTape)
        ctx.native, ctx.all_starts = tape.native, tape.all_starts if len(tape.all_starts) else None
        ctx.set_materialize_grads(False)
        return tuple(values[1:] for values in states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_states: Tensor | None) -> tuple[Tensor | None, ...]:
        xs, w_x, w_h, active, extra, *states = ctx.saved_tensors
        if ctx.native:
            loops = recurrent_native.lstm_backward if ctx.lstm else recurrent_native.gru_backward
            d_n: Tensor | None
            d_gates, *rest = loops(active, w_h.contiguous(), states[-1], extra, ctx.all_starts, *d_states)
            d_n, d_before = (None, rest) if ctx.lstm else (rest[0], rest[1:])
            hidden = states[0][:-1]
            if ctx.all_starts is not None:
                hidden = hidden.masked_fill(ctx.all_starts.unsqueeze(2), 0.0)
        else:
            backward = _lstm_backward if ctx.lstm else _gru_backward
            d_gates, d_n, d_before = backward(ctx.starts, w_h, active, extra, states, d_states)
            hidden = _after_resets(states[0], 0, len(active), ctx.starts)
        hidden = hidden.flatten(0, 1)
        d_gates, flat = d_gates.flatten(0, 1), xs.flatten(0, 1)
        d_w_h, width = d_gates.t() @ hidden, hidden.shape[1]
        # The input's part of the gates has the same gradients, except n of a GRU. With a column of ones in the input,
        # the same product gives the biases' gradients, faster than separate sums.
        parts = [d_gates] if d_n is None else [d_gates[:, : 2 * width], d_n.flatten(0, 1)]
        flat = torch.cat([flat, flat.new_ones(len(flat), 1)], 1)
        from_x = torch.cat([part.t() @ flat for part in parts])
        d_w_x, d_b_x = from_x[:, :-1], from_x[:, -1]
        d_b_h = d_b_x if d_n is None else torch.cat([d_b_x[: 2 * width], d_gates[:, 2 * width :].sum(0)])
        d_xs = None
        if ctx.needs_input_grad[1]:
            d_xs = parts[0] @ w_x[: parts[0].shape[1]]
            if d_n is not None:
                d_xs.addmm_(parts[1], w_x[2 * width :])
            d_xs = d_xs.view_as(xs)
        return None, d_xs, *d_before, d_w_x, d_w_h, d_b_x, d_b_h


def _after_resets(states: Tensor, begin: int, end: int, starts: dict[int, Tensor]) -> Tensor:
    """The states before steps `begin` to `end`, after resets."""
    before = states[begin:end]
    if steps := [t for t in starts if t and begin <= t < end]:
        before = before.clone()
        for t in steps:
            before[t - begin].masked_fill_(starts[t][:, None], 0.0)
    return before


def _blocks(length: int, batch: int, size: int) -> list[tuple[int, int]]:
    """First step and end of each block of the backward pass, last block first."""
    stride = max(1, BLOCK // (batch * size))
    return [(max(0, end - stride), end) for end in range(length, 0, -stride)]


StateGradients = Sequence[Tensor | None]
"""Gradients of the state tensors after every step, `[T, B, H]`; None: zero."""


def _lstm_backward(
    starts: dict[int, Tensor],
    w_h: Tensor,
    active: Tensor,
    tanh_cell: Tensor,
    states: list[Tensor],
    d_states: StateGradients,
) -> tuple[Tensor, None, list[Tensor]]:
    """Gradients of the gates' pre-activations, `[T, B, 4H]`, and of the state before the first step.

    With a = o (1 - tanh² c), a backward step is: dc += a dh; for i, f, g: dc times g i (1 - i), c' f (1 - f),
    i (1 - g²); for o: dh times tanh c o (1 - o); then dc f and dh = W_hᵀ d(gates) are those of the previous step.
    """
    hiddens, cells = states
    (length, batch, size), (d_hiddens, d_cells) = tanh_cell.shape, d_states
    d_active, hidden_to_cell = torch.empty_like(active), torch.empty_like(tanh_cell)
    gates, d_gates = torch.unflatten(active, 2, (4, -1)), torch.unflatten(d_active, 2, (4, -1))
    d_ifg, d_o = d_gates[:, :, :3].unbind(0), d_gates[:, :, 3].unbind(0)
    d_active_steps, forget, hidden_to_cell_steps = (
        d_active.unbind(0),
        gates[:, :, 1].unbind(0),
        hidden_to_cell.unbind(0),
    )
    d_hidden = torch.zeros_like(tanh_cell[0]) if d_hiddens is None else d_hiddens[-1].clone()
    d_cell = torch.zeros_like(tanh_cell[0])
    d_cell_wide = d_cell.unsqueeze(1)
    d_outputs = None if d_hiddens is None else d_hiddens.unbind(0)
    for begin, end in _blocks(length, batch, size):
        block = slice(begin, end)
        (i, f, g, o), (di, df, dg, do) = gates[block].unbind(2), d_gates[block].unbind(2)
        hidden, before = hiddens[begin + 1 : end + 1], _after_resets(cells, begin, end, starts)
        torch.addcmul(o, hidden, tanh_cell[block], value=-1, out=hidden_to_cell[block])
        torch.addcmul(hidden, hidden, o, value=-1, out=do)
        product = g * i
        torch.addcmul(product, product, i, value=-1, out=di)
        torch.addcmul(i, product, g, value=-1, out=dg)
        torch.mul(before, f, out=product)
        torch.addcmul(product, product, f, value=-1, out=df)
        for t in reversed(range(begin, end)):
            if d_cells is not None:
                d_cell.add_(d_cells[t])
            d_cell.addcmul_(d_hidden, hidden_to_cell_steps[t])
            d_ifg[t].mul_(d_cell_wide)
            d_o[t].mul_(d_hidden)
            d_cell.mul_(forget[t])
            if t and d_outputs is not None and t not in starts:
                torch.addmm(d_outputs[t - 1], d_active_steps[t], w_h, out=d_hidden)
                continue
            torch.mm(d_active_steps[t], w_h, out=d_hidden)
            if t in starts:
                d_hidden.masked_fill_(starts[t][:, None], 0.0)
                d_cell.masked_fill_(starts[t][:, None], 0.0)
            if t and d_outputs is not None:
                d_hidden.add_(d_outputs[t - 1])
    return d_active, None, [d_hidden, d_cell]


def _gru_backward(
    starts: dict[int, Tensor],
    w_h: Tensor,
    active: Tensor,
    n_hidden: Tensor,
    states: list[Tensor],
    d_states: StateGradients,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of the hidden state's part of the gates, `[T, B, 3H]`, of the input's part of n, and of the state.

    With u = (1 - z) (1 - n²) and g = `n_hidden`, the hidden state's part of n, a backward step is dh times: u r g (1 -
    r) for r; (h' - n) z (1 - z) for z; u for the input's part of n and u r for the hidden state's part.
    """
    (hiddens,), (d_hiddens,) = states, d_states
    length, batch, width = active.shape
    size = width // 3
    d_active, d_n = torch.empty_like(active), torch.empty_like(hiddens[1:])
    gates, d_gates = torch.unflatten(active, 2, (3, -1)), torch.unflatten(d_active, 2, (3, -1))
    d_gate_steps, d_n_steps = d_gates.unbind(0), d_n.unbind(0)
    d_active_steps, keep = d_active.unbind(0), gates[:, :, 1].unbind(0)
    d_outputs = None if d_hiddens is None else d_hiddens.unbind(0)
    d_hidden = torch.zeros_like(hiddens[0]) if d_hiddens is None else d_hiddens[-1].clone()
    d_hidden_wide = d_hidden.unsqueeze(1)
    for begin, end in _blocks(length, batch, size):
        block = slice(begin, end)
        (r, z, n), (dr, dz, d_n_hidden) = gates[block].unbind(2), d_gates[block].unbind(2)
        before, u = _after_resets(hiddens, begin, end, starts), d_n[block]
        product = torch.addcmul(z, z, n.square(), value=-1)  # z (1 - n²)
        torch.mul(n, n, out=u).neg_().add_(1).sub_(product)
        torch.mul(u, r, out=d_n_hidden)
        torch.mul(d_n_hidden, n_hidden[block], out=product)
        torch.addcmul(product, product, r, value=-1, out=dr)
        torch.sub(before, n, out=product).mul_(z)
        torch.addcmul(product, product, z, value=-1, out=dz)
        for t in reversed(range(begin, end)):
            d_gate_steps[t].mul_(d_hidden_wide)
            d_n_steps[t].mul_(d_hidden)
            d_hidden.mul_(keep[t])
            d_hidden.addmm_(d_active_steps[t], w_h)
            if t in starts:
                d_hidden.masked_fill_(starts[t][:, None], 0.0)
            if t and d_outputs is not None:
                d_hidden.add_(d_outputs[t - 1])
    return d_active, d_n, [d_hidden]
