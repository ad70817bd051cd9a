"""Gated recurrent units (Cho et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from policies.memories.recurrent.fast import FastGRU
from policies.memories.recurrent.memory import TorchRecurrent
from policies.memories.registry import register_memory


@register_memory("gru")
class GRU(TorchRecurrent):
    """Gated recurrent units (Cho et al., 2014), as in `torch.nn.GRU`.

        r_t, z_t = σ(W x_t + b + U h_{t-1} + b')                  reset and update gate, each with its own W, U
        n_t = tanh(W_n x_t + b_n + r_t ∘ (U_n h_{t-1} + b'_n))    candidate
        h_t = (1 - z_t) ∘ n_t + z_t ∘ h_{t-1}

    State: `hidden` h, `[B, num_layers, hidden_size]`. Output: h of the last layer.

    Args:
        input_size: F, width of the input.
        hidden_size: units per layer, which is also the output size.
        num_layers: layers; the input of each is the hidden state of the layer below.
    """

    fast_form = FastGRU
    kernel = nn.GRU
    state_names: ClassVar[tuple[str, ...]] = ("hidden",)

    def __init__(self, input_size: int, hidden_size: int = 200, num_layers: int = 1) -> None:
        super().__init__(input_size, hidden_size, num_layers)

    def cell(self, x: Tensor, state: tuple[Tensor, ...], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (hidden,) = state
        w, u, b, b_ = parameters
        r_x, z_x, n_x = F.linear(x, w, b).chunk(3, 1)
        r_h, z_h, n_h = F.linear(hidden, u, b_).chunk(3, 1)
        r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
        n = (n_x + r * n_h).tanh()
        return ((1 - z) * n + z * hidden,)
