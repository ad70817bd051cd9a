"""The attention GRU of the dynamic memory network, over a sliding window of facts.

Step t reads the facts t ... t + N - 1 of the history, oldest first. All steps are computed together: fact j of every
step's window is one slice of the history. With candidate n and gate g_j:

    h_j = g_j GRU(c_j, h_{j-1}) + (1 - g_j) h_{j-1},    GRU(c, h) = (1 - z) n + z h,
    r = σ(W_r c + U_r h),  z = σ(W_z c + U_z h),  n = tanh(W_n c + r ∘ (U_n h)),

with torch's biases and order r, z, n. Together: h_j = h_{j-1} + g_j (1 - z) (n - h_{j-1}).
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention_gru(products: Tensor, gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The episode e = h_N of every step: the reference implementation.

    Args:
        products: W c with bias, for every fact of the history, `[N - 1 + T, B, 3 d]`.
        gates: g of each fact of each step's window, `[N, T, B]`; 0 leaves h unchanged.
        weight: U, `[3 d, d]`.
        bias: the bias of U h, `[3 d]`.

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
