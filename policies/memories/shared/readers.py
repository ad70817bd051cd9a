"""Memories that are asked: what is written and what is asked come in by separate ways.

An observation whose entry begins with `query` is a question. A `ReaderMemory` shows it to its readers only, so it never
enters the state; every other memory sees it as input like the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from policies.memories.contract import Memory, MemoryStep, Recording, State, Unrolled, reset, unroll

Queries = Mapping[str, Tensor]
"""Questions by name, each `[B, ...]`; in a sequence `[T, B, ...]`."""

Shape = int | tuple[int, ...]
"""Of one input without its batch: F of a vector, `(C, L)` or `(C, H, W)` of a grid."""


class ReaderMemory(Memory):
    """Base class of the memories with readers.

    A subclass takes `input_size` and `queries` first, the latter the shape of each question by name, and in `forward`
    lets `queries` change the output but not the state. Without questions it is asked by its input.
    """

    has_readers: ClassVar[bool] = True

    def forward(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        """One step: `x` `[B, ...]` is written, then `queries` are answered by what has been written."""
        raise NotImplementedError

    def unroll(
        self,
        xs: Tensor,
        starts: Tensor | None,
        state: State,
        resets: Sequence[int] | None = None,
        queries: Queries | None = None,
    ) -> Unrolled:
        """As the function `unroll`; `queries` are `[T, B, ...]`."""
        return unroll(self, xs, starts, state, resets, queries)

    def record(self, state: State, room: int) -> ReaderRecording:
        """As `Memory.record`; its `step` takes questions as well."""
        return ReaderRecording(self, state)


class ReaderRecording(Recording):
    """A `Recording` whose steps may ask."""

    def step(self, x: Tensor, starts: Tensor | None, queries: Queries | None = None) -> MemoryStep:
        """As `Recording.step`, with questions by name, each `[B, ...]`."""
        if starts is not None:
            self.state = reset(self.state, starts, self.memory.initial_state(len(starts)))
        step: MemoryStep = self.memory(x, self.state, queries)
        self.keep(step)
        return step
