"""Long short-term memory (Hochreiter and Schmidhuber 1997)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from policies.memories.recurrent.fast import FastLSTM
from policies.memories.recurrent.memory import TorchRecurrent
from policies.memories.registry import register_memory


@register_memory("lstm")
class LSTM(TorchRecurrent):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997) with forget gates, as in `torch.nn.LSTM`.

        i_t, f_t, o_t = σ(W x_t + b + U h_{t-1} + b')             input, forget and output gate, each with its own W, U
        g_t = tanh(W_g x_t + b_g + U_g h_{t-1} + b'_g)            candidate
        c_t = f_t ∘ c_{t-1} + i_t ∘ g_t
        h_t = o_t ∘ tanh(c_t)

    State: `hidden` h and `cell` c, each `[B, num_layers, hidden_size]`. Output: h of the last layer.

    Args:
        input_size: F, width of the input.
        hidden_size: units per layer, which is also the output size.
        num_layers: layers; the input of each is the hidden state of the layer below.
    """

    fast_form = FastLSTM
    kernel = nn.LSTM
    state_names: ClassVar[tuple[str, ...]] = ("hidden", "cell")

    def __init__(self, input_size: int, hidden_size: int = 200, num_layers: int = 1) -> None:
        super().__init__(input_size, hidden_size, num_layers)

    def cell(self, x: Tensor, state: tuple[Tensor, ...], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        hidden, cell = state
        w, u, b, b_ = parameters
        i, f, g, o = (F.linear(x, w, b) + F.linear(hidden, u, b_)).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell
