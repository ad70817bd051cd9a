"""The fast form of the NTM: C loops on a CPU with a compiler, for sequences and for steps while acting.

The loops support every option, up to eight layers in the controller and up to `fast_native.MAX_NUMBERS` weights of all
heads. Beyond these limits, on other devices and without a compiler, the NTM uses the equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from policies.memories.contract import FastForm, MemoryStep, State, Unrolled
from policies.memories.ntm import fast_native
from policies.memories.ntm.fast_native import Sizes, Weights
from policies.memories.ntm.fast_sequence import NAMES, NativeSequence, NativeTape, named
from policies.memories.time.recording import Recording
from policies.memories.time.scopes import cached
from policies.memories.time.taped import TapedForm
from policies.native.loops import padded_size

MIN_STEPS = 20
"""Minimum number of steps that a recording allocates."""


class FastNTM(TapedForm):
    """Steps and sequences by C loops. Symbols as in `memory.py`."""

    memory: Any

    def usable(self) -> bool:
        return fast_native.usable(self.memory.interface.weight, self.sizes(1))

    def step(self, x: Tensor, state: State) -> MemoryStep:
        if torch.is_grad_enabled() or not self.usable() or not len(x):
            return FastForm.step(self, x, state)
        tape = NativeTape(1, self.parts(state), None, cached(self.memory, "weights", self.weights), self.sizes(len(x)))
        tape.step(x, None)
        return MemoryStep(self.memory.output(tape.features[0]), tape.state(), {})

    def record(self, state: State, expected_steps: int) -> Recording:
        """Uses tapes, except for a feed-forward controller: its output cannot be computed from the state."""
        return (
            super().record(state, max(expected_steps, MIN_STEPS))
            if self.memory.recurrent
            else FastForm.record(self, state, expected_steps)
        )

    def tape(self, state: State, expected_steps: int) -> NativeTape:
        return self.empty_tape(expected_steps, state, self.weights(), self.parts(self.memory.initial_state(1)))

    def output(self, state: State) -> Tensor:
        output: Tensor = self.memory.output(torch.cat([state["hidden"][:, -1], state["read_vectors"].flatten(1)], 1))
        return output

    def finish(self, tape: Any, projected: Tensor, state: State) -> Unrolled:
        tape.cut()
        return self.sequence(projected, state, None, tape)

    def run(
        self, xs: Tensor, state: State, starts: Tensor | None = None, resets: Sequence[int] | None = None
    ) -> Unrolled:
        return self.sequence(xs, state, starts)

    def sequence(self, xs: Tensor, state: State, starts: Tensor | None, tape: NativeTape | None = None) -> Unrolled:
        """A sequence. `tape`: contains the steps if they have already run; None: they run now."""
        weights, initial = self.weights(), list[Tensor]()
        if tape is not None or starts is not None:
            initial = self.parts(self.memory.initial_state(1))
        tape = tape or self.empty_tape(len(xs), state, weights, initial)
        features, *last = NativeSequence.apply(  # type: ignore[no-untyped-call]
            tape, starts, xs, *weights.flat(), *self.parts(state), *initial
        )
        return Unrolled(self.memory.output(features), named(last), {})

    def empty_tape(self, expected_steps: int, state: State, weights: Weights, initial: Sequence[Tensor]) -> NativeTape:
        """An empty tape that starts from `state`; `initial`: tensors of the initial state; empty: no episode starts."""
        detached = Weights.of(iter([weight.detach() for weight in weights.flat()]), self.memory.num_layers)
        parts = self.parts(state)
        return NativeTape(expected_steps, parts, initial or None, detached, self.sizes(len(parts[0])))

    def parts(self, state: State) -> list[Tensor]:
        """The tensors of a state, in the order of `NAMES`."""
        return [state[name] for name in NAMES if name in state]

    def sizes(self, batch: int) -> Sizes:
        """Sizes and options of the C loops."""
        memory = self.memory
        slots = (memory.slots, padded_size(memory.slots, memory.interface.weight), memory.word_size)
        heads = (memory.read_heads, memory.write_heads, memory.address_sizes[3] // 2)
        size = (memory.num_layers, memory.hidden_size, memory.recurrent)
        return Sizes(batch, *size, *slots, *heads, memory.read_first, memory.tanh_keys)

    def weights(self) -> Weights:
        """The parameters in the form that the loops use."""
        memory = self.memory
        reads = memory.read_heads * memory.word_size
        if memory.recurrent:
            ins = [layer.weight_ih for layer in memory.controller]
            biases = [layer.bias_ih + layer.bias_hh for layer in memory.controller]
            recurrent = [[layer.weight_hh] for layer in memory.controller]
        else:
            ins, biases = ([getattr(layer, name) for layer in memory.controller] for name in ("weight", "bias"))
            recurrent = [[] for _ in memory.controller]
        from_x, ins[0] = ins[0][:, :-reads], ins[0][:, -reads:]
        controller = [torch.cat([each, *hidden], 1) for each, hidden in zip(ins, recurrent, strict=True)]
        return Weights(from_x, controller, biases, memory.interface.weight, memory.interface.bias)
