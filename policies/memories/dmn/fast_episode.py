"""The attention GRU of the dynamic memory network over a window that slides along a history of facts.

Step t reads the facts t ... t + N - 1 of the history, the oldest first; all steps read at the same time, so that fact j
of every step's window is one slice of the history. The candidate of fact c_j and what the gate lets in are

    h_j = g_j GRU(c_j, h_{j-1}) + (1 - g_j) h_{j-1},    GRU(c, h) = (1 - z) n + z h,
    r = σ(W_r c + U_r h),  z = σ(W_z c + U_z h),  n = tanh(W_n c + r ∘ (U_n h)),

with torch's biases and order r, z, n. Together: h_j = h_{j-1} + g_j (1 - z) (n - h_{j-1}).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

sigmoid_backward = torch.ops.aten.sigmoid_backward.default
tanh_backward = torch.ops.aten.tanh_backward.default


def attention_gru(products: Tensor, gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The episode e = h_N of every step, by plain operations.

    Args:
        products: W c of every fact of the history, with bias, `[N - 1 + T, B, 3 d]`.
        gates: g of each fact of each step's window, `[N, T, B]`; 0 leaves h as it is.
        weight: U, `[3 d, d]`.
        bias: of U h, `[3 d]`.

    Returns:
        e, `[T, B, d]`; h_0 is zero.
    """
    steps = gates.shape[1]
    h = products.new_zeros(*gates.shape[1:], weight.shape[1])
    for j, gate in enumerate(gates.unsqueeze(3)):
        w_r, w_z, w_n = products[j : j + steps].chunk(3, 2)
        u_r, u_z, u_n = torch.nn.functional.linear(h, weight, bias).chunk(3, 2)
        r, z = torch.sigmoid(w_r + u_r), torch.sigmoid(w_z + u_z)
        n = torch.tanh(w_n + r * u_n)
        h = gate * ((1 - z) * n + z * h) + (1 - gate) * h
    return h


class AttentionGRU(torch.autograd.Function):
    """`attention_gru`, differentiated by hand: fewer operations, and 5 d numbers kept for each fact that is read.

    tests/policies/memories/test_dmn.py holds both equal, forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, products: Tensor, gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        facts, steps, batch = gates.shape
        d, rows = weight.shape[1], steps * batch
        hidden = products.new_empty(facts + 1, rows, d)
        hidden[0] = 0
        recurrent = products.new_empty(facts, rows, 3 * d)  # becomes r, z, U_n h
        candidates = products.new_empty(facts, rows, d)
        up = weight.t()
        views = zip(
            recurrent, recurrent[:, :, : 2 * d], *torch.split(recurrent, d, 2), candidates, hidden, strict=False
        )
        for j, (back, r_and_z, r, z, u_n, n, h) in enumerate(views):
            own = products[j : j + steps].reshape(rows, 3 * d)
            torch.addmm(bias, h, up, out=back)
            r_and_z.add_(own[:, : 2 * d]).sigmoid_()
            torch.addcmul(own[:, 2 * d :], r, u_n, out=n).tanh_()
            torch.lerp(h, n, (1 - z) * gates[j].view(rows, 1), out=hidden[j + 1])
        ctx.save_for_backward(gates, weight, hidden, recurrent, candidates)
        ctx.history = len(products)
        return hidden[-1].view(steps, batch, d).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_episode: Tensor) -> tuple[Tensor, ...]:
        gates, weight, hidden, recurrent, candidates = ctx.saved_tensors
        facts, steps, batch = gates.shape
        d, rows = weight.shape[1], steps * batch
        d_products = weight.new_zeros(ctx.history, batch, 3 * d)
        d_gates = torch.empty_like(gates)
        d_recurrent = torch.empty_like(recurrent)
        d_own = weight.new_empty(rows, 3 * d)
        d_h = d_episode.reshape(rows, d)
        for j in reversed(range(facts)):
            r, z, u_n = torch.split(recurrent[j], d, 1)
            h, n, gate = hidden[j], candidates[j], gates[j].view(rows, 1)
            let_in = 1 - z
            d_let_in = d_h * (n - h)
            torch.sum(d_let_in * let_in, 1, out=d_gates[j].view(rows))
            share = let_in * gate
            d_n = tanh_backward(d_h * share, n)
            d_own[:, :d] = sigmoid_backward(d_n * u_n, r)
            d_own[:, d : 2 * d] = sigmoid_backward(-gate * d_let_in, z)
            d_own[:, 2 * d :] = d_n
            d_products[j : j + steps] += d_own.view(steps, batch, 3 * d)
            d_recurrent[j] = d_own
            d_recurrent[j, :, 2 * d :] *= r
            d_h = torch.addmm(d_h * (1 - share), d_recurrent[j], weight)
        flat = d_recurrent.view(facts * rows, 3 * d)
        return d_products, d_gates, flat.t() @ hidden[:-1].reshape(facts * rows, d), flat.sum(0)
