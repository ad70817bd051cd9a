"""The fast form of SALU: sequences on one table, by C loops on a CPU with a compiler, otherwise by torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.memories.contract import State, Unrolled
from policies.memories.salu import fast_native
from policies.memories.salu.fast_native import NativeSequence, NativeTape
from policies.memories.salu.fast_sequence import TableSequence, Tape
from policies.memories.time.recording import Recording
from policies.memories.time.taped import TapedForm
from policies.native.loops import usable

MIN_STEPS = 32
"""Minimum number of steps that a recording allocates."""


class FastSALU(TapedForm):
    """Sequences on one table for all steps."""

    memory: Any

    def projected(self, xs: Tensor) -> Tensor:
        """The input's part of the controller's gates, with both biases: `[..., F]` to `[..., 4 d_h]`."""
        cell = self.memory.controller
        return F.linear(xs, cell.weight_ih[:, : xs.shape[-1]], cell.bias_ih + cell.bias_hh)

    def tape(self, state: State, expected_steps: int) -> Tape:
        with torch.no_grad():
            return (NativeTape if self.native(state) else Tape)(expected_steps, state, *self.loop_weights())

    def native(self, state: State) -> bool:
        """Whether the C loops support this state."""
        weights = self.memory.heads**2 * self.memory.capacity
        return weights <= fast_native.MAX_NUMBERS and usable(fast_native.SOURCE, state["hidden"])

    def run(
        self, xs: Tensor, state: State, starts: Tensor | None = None, resets: Sequence[int] | None = None
    ) -> Unrolled:
        if not self.native(state):
            return super().run(xs, state, starts, resets)
        projected, tape = self.projected(xs), self.tape(state, len(xs))
        assert isinstance(tape, NativeTape)
        tape.run(projected.detach(), starts)
        return self.finish(tape, projected, state)

    def loop_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """The controller's weights from [h ; v^r] to the gates, `[4 d_h, d_h + d_v]`; W_v and b_v."""
        memory, cell = self.memory, self.memory.controller
        recurrent = torch.cat([cell.weight_hh, cell.weight_ih[:, -memory.value_size :]], 1)
        return recurrent, memory.interaction.weight, memory.interaction.bias

    def output(self, state: State) -> Tensor:
        output: Tensor = self.memory.output(torch.cat([state["hidden"], state["read_value"]], 1))
        return output

    def finish(self, tape: Any, projected: Tensor, state: State) -> Unrolled:
        leaves = [state[name] for name in ("hidden", "cell", "read_value", "keys", "values")]
        if isinstance(tape, NativeTape):
            after, cell, keys, values = NativeSequence.apply(  # type: ignore[no-untyped-call]
                tape, projected, *leaves, *self.loop_weights()
            )
        else:
            *vectors, cell, keys, values = TableSequence.apply(  # type: ignore[no-untyped-call]
                tape, projected, *leaves, *self.loop_weights()
            )
            after = torch.cat(vectors, 2)
        hidden, read_value = after[-1].split([self.memory.hidden_size, self.memory.value_size], 1)
        new_state = {"hidden": hidden, "cell": cell, "read_value": read_value}
        new_state |= {"keys": keys, "values": values, "count": tape.episode_steps()}
        return Unrolled(self.memory.output(after), new_state, {})

    def record(self, state: State, expected_steps: int) -> Recording:
        return super().record(state, max(expected_steps, MIN_STEPS))
