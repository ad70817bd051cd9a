"""The fast forms of the DNC: C loops on a CPU, otherwise torch with few kernels per step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from policies.memories.contract import FastForm, MemoryStep, State, Unrolled
from policies.memories.dnc.fast_backward import StepSequence
from policies.memories.dnc.fast_native import usable
from policies.memories.dnc.fast_sequence import NativeSequence, NativeTape, outputs_of, split
from policies.memories.dnc.fast_steps import StepTape, Weights, flattened
from policies.memories.time.recording import Recording
from policies.memories.time.taped import TapedForm


class FastDNC(FastForm):
    """Chooses the form: C loops on a CPU with a compiler (`fast_sequence.py`), otherwise torch (`fast_steps.py`).

    The C loops support every option, and up to 8 layers in the controller. The torch form supports one write head and a
    clip_value of at least 20, because a fused LSTM cell does not clip. Other DNCs use the equations.
    """

    memory: Any

    def fits(self, length: int, resets: Sequence[int] | None, grad: bool) -> bool:
        return self.form(self.memory.interface.weight) is not None

    def form(self, reference: Tensor) -> TapedForm | None:
        """The form for states of the device and type of `reference`, `[B, ...]`; None: the equations."""
        memory = self.memory
        if usable(reference, memory.num_layers):
            return NativeDNC(memory)
        return TorchDNC(memory) if memory.write_heads == 1 and (memory.clip_value or math.inf) >= 20 else None

    def step(self, x: Tensor, state: State) -> MemoryStep:
        form = None if torch.is_grad_enabled() else self.form(state["hidden"])
        return form.step(x, state) if isinstance(form, NativeDNC) else super().step(x, state)

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        form = self.form(state["hidden"])
        assert form is not None, "see `fits`"
        return form.unroll(xs, starts, state, resets)

    def record(self, state: State, expected_steps: int) -> Recording:
        form = self.form(state["hidden"])
        assert form is not None, "see `fits`"
        return form.record(state, expected_steps)


class TapedDNC(TapedForm):
    """Base of the two forms."""

    memory: Any

    def output(self, state: State) -> Tensor:
        output: Tensor = self.memory.output_of(state["hidden"].flatten(1), state["read_vectors"].flatten(1))
        return output


class NativeDNC(TapedDNC):
    """Steps and sequences by C loops."""

    @torch.no_grad()
    def step(self, x: Tensor, state: State) -> MemoryStep:
        tape = NativeTape(self.memory, state, 1, keep=False)
        tape.step(x, None)
        new_state = tape.state()
        return MemoryStep(self.output(new_state), new_state, {})

    def tape(self, state: State, expected_steps: int) -> NativeTape:
        return NativeTape(self.memory, state, expected_steps)

    def run(
        self, xs: Tensor, state: State, starts: Tensor | None = None, resets: Sequence[int] | None = None
    ) -> Unrolled:
        return self.sequence(xs, state, NativeTape(self.memory, state, len(xs), torch.is_grad_enabled()), starts)

    def finish(self, tape: Any, projected: Tensor, state: State) -> Unrolled:
        tape.cut()
        return self.sequence(projected, state, tape)

    def sequence(self, xs: Tensor, state: State, tape: NativeTape, starts: Tensor | None = None) -> Unrolled:
        """A sequence with its graph; `tape`: empty, or full if its steps have already run."""
        layers = [parameter for layer in self.memory.controller for parameter in (layer.weight, layer.bias)]
        interface = [part for part in (self.memory.interface.weight, self.memory.interface.bias) if part is not None]
        after, *ends = NativeSequence.apply(  # type: ignore[no-untyped-call]
            tape, xs, starts, (*state,), *state.values(), *layers, *interface
        )
        read_size = tape.shape.read_size
        outputs = self.memory.output_of(after[..., read_size:], after[..., :read_size])
        new_state = {**split(tape.shape, after[-1]), **dict(zip(outputs_of((*state,)), ends, strict=True))}
        return Unrolled(outputs, {name: new_state[name] for name in state}, {})


class TorchDNC(TapedDNC):
    """Sequences by torch; see `fast_steps.py`."""

    def projected(self, xs: Tensor) -> Tensor:
        gates: Tensor = self.memory.gates_of(xs)
        return gates

    def tape(self, state: State, expected_steps: int) -> StepTape:
        return StepTape(self.memory, state)

    def finish(self, tape: Any, projected: Tensor, state: State) -> Unrolled:
        initial, (interface, bias, layers) = flattened(state), Weights.of(self.memory)
        after, *ends = StepSequence.apply(  # type: ignore[no-untyped-call]
            tape, projected, (*initial,), *initial.values(), interface, bias, *layers
        )
        outputs = self.memory.output_of(*after.tensor_split([tape.hidden], 2))
        last = dict(zip((name for name in initial if name != "carried"), ends, strict=True))
        return Unrolled(outputs, tape.state(last | {"carried": after[-1]}), {})
