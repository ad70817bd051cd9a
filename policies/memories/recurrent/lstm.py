"""Long short-term memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from policies.memories.recurrent.fast_sequence import LSTMTape
from policies.memories.recurrent.memory import TorchRecurrent
from policies.memories.registry import register_memory


@register_memory("lstm")
class LSTM(TorchRecurrent):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997) as `torch.nn.LSTM` has it.

    State: `hidden` and `cell`, each `[B, num_layers, hidden_size]`. Output: `hidden` of the last layer.

    Args:
        input_size: F, width of the input.
        hidden_size: units a layer, which is also the output size.
        num_layers: layers, each fed the hidden state of the one before.
        fast: by sequence kernels and by hand (`recurrent_sequence`); False: by torch's cell, step by step.
    """

    kernel = nn.LSTM
    tape = LSTMTape
    has_cpu_kernel = True
    state_names: ClassVar[tuple[str, ...]] = ("hidden", "cell")

    def __init__(self, input_size: int, hidden_size: int = 200, num_layers: int = 1, fast: bool = True) -> None:
        super().__init__(input_size, hidden_size, num_layers, fast)

    def cell(self, x: Tensor, state: tuple[Tensor, ...], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return torch.lstm_cell(x, state, *parameters)
