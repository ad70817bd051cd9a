"""The fast form of the SDNC: C loops on a CPU with a compiler.

Elsewhere, and with `link_reads="products"`, torch updates one copy of the memory in place (`fast_rows.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.memories.contract import FastForm, MemoryStep, State, Unrolled
from policies.memories.sdnc import fast_native
from policies.memories.sdnc.fast_native import DIFFERENTIATED, WORKING, NativeSequence, Sizes, Steps
from policies.memories.sdnc.fast_rows import RowsForm
from policies.memories.shared.addressing import inverse_norms
from policies.memories.time.recording import Recording


class FastSDNC(RowsForm):
    """Chooses C loops or `RowsForm`. Symbols as in `memory.py`."""

    def usable(self) -> bool:
        memory = self.memory
        has_loops = fast_native.usable(memory.interface.weight, memory.slots, memory.read_heads)
        return memory.link_reads == "rows" and has_loops

    def step(self, x: Tensor, state: State) -> MemoryStep:
        if torch.is_grad_enabled() or not self.usable() or not len(x):
            return super().step(x, state)
        unrolled = self.unroll_native(x.unsqueeze(0), None, state)
        return MemoryStep(unrolled.outputs[0], unrolled.state, {})

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        return self.unroll_native(xs, starts, state) if self.usable() else super().unroll(xs, starts, state, resets)

    def record(self, state: State, expected_steps: int) -> Recording:
        return FastForm.record(self, state, expected_steps) if self.usable() else super().record(state, expected_steps)

    def unroll_native(self, xs: Tensor, starts: Tensor | None, state: State) -> Unrolled:
        """As `unroll`, by the C loops."""
        memory, cell = self.memory, self.memory.controller
        reads = memory.read_heads * memory.word_size
        gates = F.linear(xs, cell.weight_ih[:, :-reads], cell.bias_ih + cell.bias_hh)
        recurrent = torch.cat([cell.weight_hh, cell.weight_ih[:, -reads:]], 1)
        sizes = (xs.shape[1], memory.hidden_size, memory.slots, memory.word_size, memory.read_heads)
        words = memory.get_buffer("initial_memory")
        steps = Steps(
            Sizes(*sizes, memory.sparse_reads, memory.sparse_links),
            memory.access_threshold,
            state,
            starts,
            (words, inverse_norms(words)),
            gates.detach().clone(memory_format=torch.contiguous_format),
        )
        features, last_cell, words, read_weights, write_weights = NativeSequence.apply(  # type: ignore[no-untyped-call]
            *(steps, gates, recurrent, memory.interface.weight, memory.interface.bias),
            *(state[name] for name in DIFFERENTIATED),
        )
        hidden, vectors = features[-1].split([memory.hidden_size, reads], 1)
        after = {name: steps.working[name] for name in WORKING if name not in ("memory", "norms")}
        after |= {"hidden": hidden, "cell": last_cell, "read_vectors": vectors.unflatten(1, (memory.read_heads, -1))}
        after |= {
            "memory": words,
            "inverse_norm": steps.working["norms"],
            "read_weights": read_weights,
            "write_weights": write_weights,
        }
        after["read_slots"] = steps.arrays["read_slots"][-1].to(xs.dtype)
        after["write_slots"] = steps.arrays["write_slots"][-1].to(xs.dtype)
        return Unrolled(memory.output(features), {name: after[name] for name in state}, {})
