"""Gated recurrent units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from policies.memories.recurrent.fast_sequence import GRUTape
from policies.memories.recurrent.memory import TorchRecurrent
from policies.memories.registry import register_memory


@register_memory("gru")
class GRU(TorchRecurrent):
    """Gated recurrent units (Cho et al., 2014) as `torch.nn.GRU` has them.

    State: `hidden` `[B, num_layers, hidden_size]`. Output: `hidden` of the last layer.

    Args:
        input_size: F, width of the input.
        hidden_size: units a layer, which is also the output size.
        num_layers: layers, each fed the hidden state of the one before.
        fast: by sequence kernels and by hand (`recurrent_sequence`); False: by torch's cell, step by step.
    """

    kernel = nn.GRU
    tape = GRUTape
    has_cpu_kernel = False
    state_names: ClassVar[tuple[str, ...]] = ("hidden",)

    def __init__(self, input_size: int, hidden_size: int = 200, num_layers: int = 1, fast: bool = True) -> None:
        super().__init__(input_size, hidden_size, num_layers, fast)

    def cell(self, x: Tensor, state: tuple[Tensor, ...], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (torch.gru_cell(x, *state, *parameters),)
