"""Sequences whose steps run one by one and are differentiated later, as in A2C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from policies.memories.steps import MemoryStep, Queries, State, Unrolled, reset, stack


class Recordable(Protocol):
    """The part of `Memory` that is used here."""

    def initial_state(self, batch_size: int) -> State: ...

    def step(self, x: Tensor, state: State, *queries: Queries) -> MemoryStep: ...

    def unroll(
        self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None, *queries: Any
    ) -> Unrolled: ...


class Recording:
    """A sequence whose steps run one by one and are differentiated later. This class stores the graph of every step."""

    def __init__(self, memory: Recordable, state: State) -> None:
        self.memory, self.state = memory, state
        self.steps: list[MemoryStep] = []

    def step(self, x: Tensor, starts: Tensor | None, *queries: Queries) -> MemoryStep:
        """Runs a step on `x` `[B, ...]`, after a reset where `starts` `[B]` is true; None: no reset.

        Output and state are for acting; the state is valid until the next step. `queries`: the questions by name,
        each `[B, ...]`, if the memory has readers.
        """
        if starts is not None:
            self.state = reset(self.state, starts, self.memory.initial_state(len(starts)))
        step = self.memory.step(x, self.state, *queries)
        self.state = step.state
        # without a graph, earlier states are not needed
        self.steps.append(step if torch.is_grad_enabled() else step._replace(state={}))
        return step

    def unrolled(self) -> Unrolled:
        """All steps so far, with their graph: as `unroll` over the same inputs."""
        return stack(self.steps)._replace(state=self.state)


class ReplayedRecording(Recording):
    """A recording whose steps run without a graph; one `unroll` over all of them then creates it."""

    def __init__(self, memory: Recordable, state: State) -> None:
        super().__init__(memory, state)
        self.first = state
        self.inputs: list[tuple[Any, ...]] = []

    @torch.no_grad()
    def step(self, x: Tensor, starts: Tensor | None, *queries: Queries) -> MemoryStep:
        self.inputs.append((x, starts, *queries))
        if starts is not None:
            self.state = reset(self.state, starts, self.memory.initial_state(len(starts)))
        step = self.memory.step(x.detach(), self.state, *queries)
        self.state = step.state
        return step

    def unrolled(self) -> Unrolled:
        xs, starts, resets, queries = stacked(self.inputs)
        return self.memory.unroll(xs, starts, self.first, resets, *(() if queries is None else (queries,)))


class Stacked(NamedTuple):
    """The inputs of single steps as a sequence; fields as the arguments of `unroll`."""

    xs: Tensor
    starts: Tensor | None
    resets: list[int]
    queries: dict[str, Tensor] | None


def stacked(inputs: Sequence[tuple[Any, ...]]) -> Stacked:
    """Combines the arguments of `Recording.step` of all steps."""
    xs, each, *questions = zip(*inputs, strict=True)
    resets = [t for t, starts in enumerate(each) if starts is not None]
    starts = None
    if resets:
        no_starts = torch.zeros_like(each[resets[0]])
        starts = torch.stack([no_starts if start is None else start for start in each])
    queries = None
    if questions:
        queries = {name: torch.stack([query[name] for query in questions[0]]) for name in questions[0][0]}
    return Stacked(torch.stack(xs), starts, resets, queries)
