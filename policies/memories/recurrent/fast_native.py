"""Calls of `fast_cells.c`: LSTM and GRU over time on a CPU.

With few rows, torch's overhead per operation exceeds the arithmetic, and its products pack the weights again at every
step.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from policies.native import loops
from policies.native.packed import packed

SOURCE = Path(__file__).with_name("fast_cells.c")


def usable(state: Tensor) -> bool:
    """Whether the loops can be used for a state `[B, H]`: on a CPU, not empty, and with a compiler."""
    return state.numel() > 0 and loops.usable(SOURCE, state)


def lstm_forward(
    gates: Tensor, weights: Tensor, hiddens: Tensor, cells: Tensor, tanh_cells: Tensor, starts: Tensor | None
) -> None:
    """Computes all steps in place.

    Args:
        gates: `[T, B, 4H]`: the input's part, overwritten by the gates.
        weights: recurrent, `[4H, H]`.
        hiddens, cells: `[T + 1, B, H]`; entry 0 is the state before the first step, set to 0 where an episode starts.
        tanh_cells: `[T, B, H]`, output: tanh of the cells.
        starts: bool `[T, B]`, or None.
    """
    steps, batch, size = tanh_cells.shape
    scratch, to_gates = gates.new_empty(2, batch, size), packed(loops.functions_of(SOURCE, gates), weights)
    _call("lstm_forward", (gates, to_gates, hiddens, cells, tanh_cells, starts, scratch), (steps, batch, size))


def lstm_backward(
    gates: Tensor,
    weights: Tensor,
    cells: Tensor,
    tanh_cells: Tensor,
    starts: Tensor | None,
    d_hiddens: Tensor | None,
    d_cells: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the gates' pre-activations `[T, B, 4H]` and of the first state, `[B, H]` each.

    Args:
        gates, weights, cells, tanh_cells, starts: from `lstm_forward`.
        d_hiddens, d_cells: gradients of the states after every step, `[T, B, H]`, or None.
    """
    steps, batch, size = tanh_cells.shape
    d_gates, d_hidden, d_cell = torch.empty_like(gates), gates.new_empty(batch, size), gates.new_empty(batch, size)
    d_outputs = [None if d is None else d.contiguous() for d in (d_hiddens, d_cells)]
    from_gates = packed(loops.functions_of(SOURCE, gates), weights, forward=False)
    arrays = (gates, from_gates, cells, tanh_cells, starts, *d_outputs, d_gates, d_hidden, d_cell)
    _call("lstm_backward", arrays, (steps, batch, size))
    return d_gates, d_hidden, d_cell


def gru_forward(
    gates: Tensor, weights: Tensor, bias: Tensor, hiddens: Tensor, n_hidden: Tensor, starts: Tensor | None
) -> None:
    """Computes all steps in place.

    Args:
        gates: `[T, B, 3H]`: the input's part, overwritten by the gates.
        weights: recurrent, `[3H, H]`.
        bias: bias of the hidden state's part of n, `[H]`.
        hiddens: `[T + 1, B, H]`; entry 0 is the state before the first step, set to 0 where an episode starts.
        n_hidden: `[T, B, H]`, output: the hidden state's part of n.
        starts: bool `[T, B]`, or None.
    """
    steps, batch, size = n_hidden.shape
    scratch, functions = gates.new_empty(batch, size), loops.functions_of(SOURCE, gates)
    to_rz, to_n = packed(functions, weights[: 2 * size]), packed(functions, weights[2 * size :])
    _call("gru_forward", (gates, to_rz, to_n, bias, hiddens, n_hidden, starts, scratch), (steps, batch, size))


def gru_backward(
    gates: Tensor,
    weights: Tensor,
    hiddens: Tensor,
    n_hidden: Tensor,
    starts: Tensor | None,
    d_hiddens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the hidden state's part of the gates `[T, B, 3H]`, of the input's part of n `[T, B, H]`, and of the
    first state `[B, H]`.

    Args:
        gates, weights, hiddens, n_hidden, starts: from `gru_forward`.
        d_hiddens: gradients of the states after every step, `[T, B, H]`, or None.
    """
    steps, batch, size = n_hidden.shape
    d_gates, d_n, d_hidden = torch.empty_like(gates), torch.empty_like(n_hidden), gates.new_empty(batch, size)
    d_hiddens = None if d_hiddens is None else d_hiddens.contiguous()
    from_gates = packed(loops.functions_of(SOURCE, gates), weights, forward=False)
    arrays = (gates, from_gates, hiddens, n_hidden, starts, d_hiddens, d_gates, d_n, d_hidden)
    _call("gru_backward", arrays, (steps, batch, size))
    return d_gates, d_n, d_hidden


def _call(name: str, arrays: tuple[Tensor | None, ...], sizes: tuple[int, ...]) -> None:
    """Calls a C function for all rows of a batch. `sizes`: steps, batch, width of the state."""
    assert all(array is None or array.is_contiguous() for array in arrays)
    first = arrays[0]
    assert first is not None
    loops.call(getattr(loops.functions_of(SOURCE, first), name), arrays, sizes, sizes[1])
