"""The fast form of the D-NTM: C loops for sequences and acting steps on a CPU with a compiler.

The loops support the default options: soft addressing, a GRU of one layer, one reading step and no losses. Other
options use the equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.memories.contract import FastForm, MemoryStep, State, Unrolled
from policies.memories.d_ntm import fast_native
from policies.memories.d_ntm.fast_native import NativeSequence, Sizes, Weights
from policies.native.loops import padded_size


class FastDNTM(FastForm):
    """Steps and sequences by C loops. Symbols as in `memory.py`."""

    memory: Any

    def usable(self) -> bool:
        memory = self.memory
        default_options = memory.recurrent and memory.num_layers == memory.reading_steps == 1 and not memory.discrete
        losses = memory.entropy_coef or memory.consistency_coef or memory.prediction_coef
        heads = memory.read_heads + memory.write_heads
        return (
            default_options
            and not losses
            and fast_native.usable(memory.addresses, heads, memory.places, memory.hidden_size)
        )

    def step(self, x: Tensor, state: State) -> MemoryStep:
        if torch.is_grad_enabled() or not self.usable() or not len(x):
            return super().step(x, state)
        unrolled = self.unroll(x.unsqueeze(0), None, state, ())
        return MemoryStep(unrolled.outputs[0], unrolled.state, {})

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        memory, cell = self.memory, self.memory.controller[0]
        size, reads = memory.hidden_size, memory.read_size
        gates = F.linear(xs, cell.weight_ih[:, :-reads], cell.bias_ih)
        candidates_x = F.linear(xs, torch.cat([memory.input_candidate.weight, memory.input_gate.weight[:, size:]]))
        layers = (memory.read_interface, memory.write_interface, memory.erase, memory.candidate)
        weights = Weights(
            *(cell.weight_hh, cell.bias_hh, cell.weight_ih[:, -reads:]),
            torch.cat([*(layer.weight for layer in layers), memory.input_gate.weight[:, :size]]),
            torch.cat([layer.bias for layer in (*layers, memory.input_gate)]),
            memory.addresses,
        )
        heads = (memory.read_heads, memory.write_heads)
        lru = memory.least_recently_used
        usage = [state["read_usage"], state["write_usage"]] if lru else [xs.new_zeros(xs.shape[1], sum(heads), 1)]
        sizes = (xs.shape[1], size, memory.slots, memory.places, padded_size(memory.places, memory.addresses))
        widths = (memory.addresses.shape[1], memory.word_size)
        features, contents, w, usage = NativeSequence.apply(  # type: ignore[no-untyped-call]
            *(Sizes(*sizes, *widths, *heads, lru), memory.usage_decay, starts, torch.cat(usage, 1).detach()),
            *(gates, candidates_x, *weights, state["contents"], state["read_value"], state["hidden"][:, 0]),
        )
        hidden, read_value = features[-1].split([size, reads], 1)
        after = {"contents": contents, "read_value": read_value, "hidden": hidden.unsqueeze(1)}
        after |= dict(zip(("read_weights", "write_weights"), w.split(heads, 1), strict=True))
        after |= dict(zip(("read_usage", "write_usage"), usage.split(heads, 1), strict=True))
        return Unrolled(memory.output(features), {name: after[name] for name in state}, {})
