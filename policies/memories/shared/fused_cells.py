"""The pointwise part of a step of an LSTM or a GRU, forward and backward, for custom backward passes.

On CUDA each function is one launch of the kernels behind `torch.lstm_cell` and `torch.gru_cell`; elsewhere it uses
torch's operations. Gates are concatenated in torch's order: i, f, g, o of an LSTM, r, z, n of a GRU.
"""

from __future__ import annotations

import torch
from torch import Tensor

_aten = torch.ops.aten
_sigmoid_back, _tanh_back = _aten.sigmoid_backward.grad_input, _aten.tanh_backward.grad_input


def lstm(gates_x: Tensor, gates_h: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of an LSTM: h_t and c_t `[B, d]`, and the activations σ and tanh of the gates.

    i, f, o = σ(...), g = tanh(...), c_t = f ∘ c_{t-1} + i ∘ g, h_t = o ∘ tanh(c_t).

    Args:
        gates_x, gates_h: the parts of the pre-activations that come from the input and from h_{t-1}, `[B, 4 d]`.
        cell: c_{t-1}, `[B, d]`.
    """
    if gates_x.is_cuda:
        return _aten._thnn_fused_lstm_cell(gates_x, gates_h, cell)  # type: ignore[no-any-return]
    activations, d = gates_x + gates_h, cell.shape[1]
    activations[:, : 2 * d].sigmoid_()
    i, f, g, o = activations.chunk(4, 1)
    g.tanh_()
    o.sigmoid_()
    after = torch.addcmul(f * cell, i, g)
    return o * after.tanh(), after, activations


def lstm_backward(
    d_hidden: Tensor, d_cell: Tensor, before: Tensor, after: Tensor, activations: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the pre-activations, equal for both parts, and of c_{t-1}.

    Args:
        d_hidden: gradient of h_t.
        d_cell: gradient of c_t, without the part that comes through h_t.
        before: c_{t-1}.
        after: c_t.
        activations: σ and tanh of the gates, from `lstm`.
    """
    if activations.is_cuda:
        d_gates, d_before, _ = _aten._thnn_fused_lstm_cell_backward_impl(
            d_hidden, d_cell, before, after, activations, False
        )
        return d_gates, d_before
    i, f, g, o = activations.chunk(4, 1)
    tanh = after.tanh()
    d_cell = torch.addcmul(d_cell, _aten.tanh_backward(d_hidden, tanh), o)
    d_gates = torch.empty_like(activations)
    d_i, d_f, d_g, d_o = d_gates.chunk(4, 1)
    _sigmoid_back(d_cell * g, i, grad_input=d_i)
    _sigmoid_back(d_cell * before, f, grad_input=d_f)
    _tanh_back(d_cell * i, g, grad_input=d_g)
    _sigmoid_back(d_hidden * tanh, o, grad_input=d_o)
    return d_gates, d_cell * f


def gru(gates_x: Tensor, gates_h: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """One step of a GRU: h_t `[B, d]`, and the tensors that `gru_backward` needs.

    r, z = σ(...), n = tanh(x_n + r ∘ h_n), h_t = (1 - z) n + z h_{t-1}.

    Args:
        gates_x, gates_h: the parts of the pre-activations that come from the input and from h_{t-1}, with their biases,
            `[B, 3 d]`.
        hidden: h_{t-1}, `[B, d]`.
    """
    if gates_x.is_cuda:
        return _aten._thnn_fused_gru_cell(gates_x, gates_h, hidden)  # type: ignore[no-any-return]
    (x_r, x_z, x_n), (h_r, h_z, h_n) = gates_x.chunk(3, 1), gates_h.chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.addcmul(x_n, r, h_n).tanh_()
    return torch.lerp(n, hidden, z), torch.cat([r, z, n, hidden, h_n], 1)


def gru_backward(d_hidden: Tensor, saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `gates_x`, `gates_h` and h_{t-1}.

    Args:
        d_hidden: gradient of h_t.
        saved: from `gru`.
    """
    if saved.is_cuda:
        return _aten._thnn_fused_gru_cell_backward(d_hidden, saved, False)[:3]  # type: ignore[no-any-return]
    r, z, n, hidden, h_n = saved.chunk(5, 1)
    d_n = _aten.tanh_backward(d_hidden * (1 - z), n)
    d_r = _aten.sigmoid_backward(d_n * h_n, r)
    d_z = _aten.sigmoid_backward(d_hidden * (hidden - n), z)
    return torch.cat([d_r, d_z, d_n], 1), torch.cat([d_r, d_z, d_n * r], 1), d_hidden * z
