"""The fast form of the stack RNN: C loops on a CPU with a compiler, for sequences and for steps while acting.

The loops do not support rounded actions. With these, on other devices and without a compiler, the memory uses the
equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from policies.memories.contract import FastForm, MemoryStep, State, Unrolled
from policies.memories.stack_rnn import fast_native
from policies.memories.stack_rnn.fast_native import NativeSequence, NativeTape, Sizes, Weights
from policies.memories.time.recording import Recording
from policies.memories.time.scopes import cached
from policies.memories.time.taped import TapedForm

MIN_STEPS = 20
"""Minimum number of steps that a recording allocates."""


class FastStackRNN(TapedForm):
    """Steps and sequences by C loops. Symbols as in `memory.py`."""

    memory: Any

    def usable(self) -> bool:
        memory = self.memory  # its `rounds` depends on `training`
        return not memory.rounds and fast_native.usable(memory.tops.weight, memory.capacity)

    def step(self, x: Tensor, state: State) -> MemoryStep:
        if torch.is_grad_enabled() or not self.usable() or not len(x):
            return FastForm.step(self, x, state)
        tape = self.empty_tape(1, state, cached(self.memory, "weights", self.weights))
        tape.step(x, None)
        after = tape.state()
        return MemoryStep(after["hidden"], after, {})

    def record(self, state: State, expected_steps: int) -> Recording:
        return super().record(state, max(expected_steps, MIN_STEPS))

    def tape(self, state: State, expected_steps: int) -> NativeTape:
        return self.empty_tape(expected_steps, state, self.weights())

    def output(self, state: State) -> Tensor:
        return state["hidden"]

    def finish(self, tape: Any, projected: Tensor, state: State) -> Unrolled:
        return self.sequence(projected, state, None, tape)

    def run(
        self, xs: Tensor, state: State, starts: Tensor | None = None, resets: Sequence[int] | None = None
    ) -> Unrolled:
        return self.sequence(xs, state, starts, self.tape(state, len(xs)))

    def sequence(self, xs: Tensor, state: State, starts: Tensor | None, tape: NativeTape) -> Unrolled:
        """A sequence. An empty `tape` runs the steps now; a full one has run them."""
        outputs, stacks = NativeSequence.apply(  # type: ignore[no-untyped-call]
            tape, starts, xs, state["hidden"], state["stacks"], *self.weights()
        )
        return Unrolled(outputs, {"hidden": outputs[-1], "stacks": stacks}, {})

    def empty_tape(self, expected_steps: int, state: State, weights: Weights) -> NativeTape:
        """An empty tape that starts from `state`."""
        memory, hidden = self.memory, state["hidden"]
        (batch, size), actions = hidden.shape, 3 if memory.no_op else 2
        sizes = (memory.num_stacks, memory.capacity, memory.top_k, actions, memory.recurrent)
        empty = memory.initial_state(1)["stacks"][0]
        return NativeTape(expected_steps, hidden, state["stacks"], empty, weights, Sizes(batch, size, *sizes))

    def weights(self) -> Weights:
        """The parameters in the form that the loops use."""
        memory = self.memory
        weight = memory.tops.weight
        if memory.hidden is not None:
            weight = torch.cat([weight, memory.hidden.weight], 1)
        interface = torch.cat([memory.actions.weight, memory.pushed.weight])
        if memory.input.bias is None:
            zeros = weight.new_zeros(len(weight)), weight.new_zeros(len(interface))
            return Weights(memory.input.weight, zeros[0], weight, interface, zeros[1])
        bias = torch.cat([memory.actions.bias, memory.pushed.bias])
        return Weights(memory.input.weight, memory.input.bias, weight, interface, bias)
