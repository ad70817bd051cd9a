"""The fast forms of the DNC: C loops on a CPU; elsewhere what does not wait for the last step at once, and a linkage
that is not kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from policies.memories.contract import FastForm, MemoryStep, State, Unrolled
from policies.memories.dnc.fast_links import TapedLinks
from policies.memories.dnc.fast_native import usable
from policies.memories.dnc.fast_sequence import NativeSequence, NativeTape, outputs_of, split
from policies.memories.shared.addressing import inverse_norms
from policies.memories.steps import reset
from policies.memories.time.recording import Recording
from policies.memories.time.shared_linear import SharedLinear
from policies.memories.time.taped import TapedForm


class FastDNC(FastForm):
    """By C loops (`fast_sequence.py`) on a CPU where there is a compiler and the controller has at most 8 layers.

    They take every option. Elsewhere torch's operations rewrite the linkage in place (`fast_links.py`).
    """

    memory: Any

    def form(self, state: State) -> TapedForm:
        """The one that takes such a state."""
        native = usable(state["hidden"], self.memory.num_layers)
        return NativeDNC(self.memory) if native else LinkedDNC(self.memory)

    def step(self, x: Tensor, state: State) -> MemoryStep:
        if torch.is_grad_enabled():
            return super().step(x, state)
        return self.form(state).step(x, state)

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        return self.form(state).unroll(xs, starts, state, resets)

    def record(self, state: State, room: int) -> Recording:
        return self.form(state).record(state, room)


class NativeDNC(TapedForm):
    """Steps and sequences by C loops."""

    memory: Any

    @torch.no_grad()
    def step(self, x: Tensor, state: State) -> MemoryStep:
        tape = NativeTape(self.memory, state, 1, keep=False)
        tape.step(x, None)
        following = tape.state()
        return MemoryStep(self.output(following), following, {})

    def tape(self, state: State, room: int) -> NativeTape:
        return NativeTape(self.memory, state, room)

    def output(self, state: State) -> Tensor:
        output: Tensor = self.memory.output_of(state["hidden"].flatten(1), state["read_vectors"].flatten(1))
        return output

    def run(
        self, xs: Tensor, state: State, starts: Tensor | None = None, resets: Sequence[int] | None = None
    ) -> Unrolled:
        return self.sequence(xs, state, NativeTape(self.memory, state, len(xs), torch.is_grad_enabled()), starts)

    def finish(self, tape: Any, given: Tensor, state: State) -> Unrolled:
        tape.cut()
        return self.sequence(given, state, tape)

    def sequence(self, xs: Tensor, state: State, tape: NativeTape, starts: Tensor | None = None) -> Unrolled:
        """A sequence with its graph; `tape`: blank, or full if its steps were already taken."""
        layers = [parameter for layer in self.memory.controller for parameter in (layer.weight, layer.bias)]
        interface = [part for part in (self.memory.interface.weight, self.memory.interface.bias) if part is not None]
        after, *ends = NativeSequence.apply(  # type: ignore[no-untyped-call]
            tape, xs, starts, (*state,), *state.values(), *layers, *interface
        )
        seen = tape.shape.seen
        outputs = self.memory.output_of(after[..., seen:], after[..., :seen])
        following = {**split(tape.shape, after[-1]), **dict(zip(outputs_of((*state,)), ends, strict=True))}
        return Unrolled(outputs, {name: following[name] for name in state}, {})


class Steps:
    """Steps of a DNC, with their graph but for the linkage's."""

    full = False

    def __init__(self, memory: Any, state: State, room: int) -> None:
        self.dnc, self.links = memory, TapedLinks(state["linkage"], room)
        self.layers = [SharedLinear(weight) for weight in memory.recurrent_weights()]
        self.rest, self.norms = state, inverse_norms(state["memory"])
        self.hidden: list[Tensor] = []
        self.read_vectors: list[Tensor] = []

    def step(self, given: Tensor, starts: Tensor | None) -> None:
        """A step; `given`: of `DNC.gates_of`."""
        if starts is not None:
            initial = self.dnc.initial_state(len(starts))
            self.rest = reset({name: value for name, value in self.rest.items() if name != "linkage"}, starts, initial)
            self.norms = inverse_norms(self.rest["memory"])
        self.rest, self.norms = self.dnc.advance(given, self.rest, self.norms, self.layers, self.links, starts)
        self.hidden.append(self.rest["hidden"].flatten(1))
        self.read_vectors.append(self.rest["read_vectors"].flatten(1))

    def state(self) -> State:
        return {**self.rest, "linkage": self.links.current()}


class LinkedDNC(TapedForm):
    """Sequences whose linkage is rewritten in place; see `fast_links.py`."""

    keeps_graph = True
    memory: Any

    def given(self, xs: Tensor) -> Tensor:
        gates: Tensor = self.memory.gates_of(xs)
        return gates

    def tape(self, state: State, room: int) -> Steps:
        return Steps(self.memory, state, room)

    def output(self, state: State) -> Tensor:
        output: Tensor = self.memory.output_of(state["hidden"].flatten(1), state["read_vectors"].flatten(1))
        return output

    def finish(self, tape: Any, given: Tensor, state: State) -> Unrolled:
        outputs = self.memory.output_of(torch.stack(tape.hidden), torch.stack(tape.read_vectors))
        return Unrolled(outputs, {**tape.rest, "linkage": tape.links.final()}, {})
