"""The pointwise part of a step of an LSTM or a GRU and its derivative, for custom backward passes.

On CUDA each is one launch, by the kernels behind `torch.lstm_cell` and `torch.gru_cell`; elsewhere torch's operations
do the same. Gates are side by side, in torch's order: i, f, g, o of an LSTM, r, z, n of a GRU.
"""

from __future__ import annotations

import torch
from torch import Tensor

_aten = torch.ops.aten
_sigmoid_back, _tanh_back = _aten.sigmoid_backward.grad_input, _aten.tanh_backward.grad_input


def lstm(gates_x: Tensor, gates_h: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h_t and c_t `[B, d]` from both parts of the gates, `[B, 4 d]`, and c_{t-1}; and σ and tanh of the gates.

    i, f, o = σ(...), g = tanh(...), c_t = f ∘ c_{t-1} + i ∘ g, h_t = o ∘ tanh(c_t).
    """
    if gates_x.is_cuda:
        return _aten._thnn_fused_lstm_cell(gates_x, gates_h, cell)  # type: ignore[no-any-return]
    squashed, d = gates_x + gates_h, cell.shape[1]
    squashed[:, : 2 * d].sigmoid_()
    i, f, g, o = squashed.chunk(4, 1)
    g.tanh_()
    o.sigmoid_()
    after = torch.addcmul(f * cell, i, g)
    return o * after.tanh(), after, squashed


def lstm_back(
    d_hidden: Tensor, d_cell: Tensor, before: Tensor, after: Tensor, squashed: Tensor
) -> tuple[Tensor, Tensor]:
    """The derivatives of the gates, the same for both parts, and of c_{t-1}.

    Args:
        d_hidden: of h_t.
        d_cell: of c_t, but for what it gets from h_t.
        before: c_{t-1}.
        after: c_t.
        squashed: σ and tanh of the gates, of `lstm`.
    """
    if squashed.is_cuda:
        d_gates, d_before, _ = _aten._thnn_fused_lstm_cell_backward_impl(
            d_hidden, d_cell, before, after, squashed, False
        )
        return d_gates, d_before
    i, f, g, o = squashed.chunk(4, 1)
    tanh = after.tanh()
    d_cell = torch.addcmul(d_cell, _aten.tanh_backward(d_hidden, tanh), o)
    d_gates = torch.empty_like(squashed)
    d_i, d_f, d_g, d_o = d_gates.chunk(4, 1)
    _sigmoid_back(d_cell * g, i, grad_input=d_i)
    _sigmoid_back(d_cell * before, f, grad_input=d_f)
    _tanh_back(d_cell * i, g, grad_input=d_g)
    _sigmoid_back(d_hidden * tanh, o, grad_input=d_o)
    return d_gates, d_cell * f


def gru(gates_x: Tensor, gates_h: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """h_t `[B, d]` from both parts of the gates, `[B, 3 d]`, with their biases, and h_{t-1}; and what `gru_back` takes.

    r, z = σ(...), n = tanh(x_n + r ∘ h_n), h_t = (1 - z) n + z h_{t-1}.
    """
    if gates_x.is_cuda:
        return _aten._thnn_fused_gru_cell(gates_x, gates_h, hidden)  # type: ignore[no-any-return]
    (x_r, x_z, x_n), (h_r, h_z, h_n) = gates_x.chunk(3, 1), gates_h.chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.addcmul(x_n, r, h_n).tanh_()
    return torch.lerp(n, hidden, z), torch.cat([r, z, n, hidden, h_n], 1)


def gru_back(d_hidden: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives of `gates_x`, `gates_h` and h_{t-1}.

    Args:
        d_hidden: of h_t.
        kept: of `gru`.
    """
    if kept.is_cuda:
        return _aten._thnn_fused_gru_cell_backward(d_hidden, kept, False)[:3]  # type: ignore[no-any-return]
    r, z, n, hidden, h_n = kept.chunk(5, 1)
    d_n = _aten.tanh_backward(d_hidden * (1 - z), n)
    d_r = _aten.sigmoid_backward(d_n * h_n, r)
    d_z = _aten.sigmoid_backward(d_hidden * (hidden - n), z)
    return torch.cat([d_r, d_z, d_n], 1), torch.cat([d_r, d_z, d_n * r], 1), d_hidden * z
