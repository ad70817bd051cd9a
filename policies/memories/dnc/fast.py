"""The fast form of the DNC: what does not wait for the last step at once, and a linkage that is not kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from policies.memories.contract import State, Unrolled
from policies.memories.dnc.fast_links import TapedLinks
from policies.memories.shared.addressing import inverse_norms
from policies.memories.steps import reset
from policies.memories.time.shared_linear import SharedLinear
from policies.memories.time.taped import TapedForm


class Sequence:
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


class FastDNC(TapedForm):
    """Sequences whose linkage is rewritten in place; see `fast_links.py`."""

    keeps_graph = True
    memory: Any

    def given(self, xs: Tensor) -> Tensor:
        gates: Tensor = self.memory.gates_of(xs)
        return gates

    def tape(self, state: State, room: int) -> Sequence:
        return Sequence(self.memory, state, room)

    def output(self, state: State) -> Tensor:
        output: Tensor = self.memory.output_of(state["hidden"].flatten(1), state["read_vectors"].flatten(1))
        return output

    def finish(self, tape: Any, given: Tensor, state: State) -> Unrolled:
        outputs = self.memory.output_of(torch.stack(tape.hidden), torch.stack(tape.read_vectors))
        return Unrolled(outputs, {**tape.rest, "linkage": tape.links.final()}, {})
