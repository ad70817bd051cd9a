"""The memoryless baseline."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from policies.memories.contract import FastForm, Memory, MemoryStep, State, Unrolled
from policies.memories.registry import register_memory
from policies.memories.time.recording import Recording


class IdentityForm(FastForm):
    """Returns the inputs of a sequence as its outputs."""

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        return Unrolled(xs, {}, {})

    def record(self, state: State, expected_steps: int) -> Recording:
        return Recording(self.memory, state)


@register_memory("identity")
class Identity(Memory):
    """No memory: the output is the input and the state is empty.

    A policy's score with it is the score that the task allows without memory.

    Args:
        input_size: F, width of the input; `output_size` is the same.
    """

    fast_form = IdentityForm

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.output_size = input_size

    def initial_state(self, batch_size: int) -> State:
        return {}

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        return MemoryStep(x, {}, {})
