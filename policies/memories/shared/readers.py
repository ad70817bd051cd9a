"""Memories with readers: input is written, questions are only answered.

Observation entries whose names begin with `query` are questions. A `ReaderMemory` passes them to its readers only, so
they never enter the state. Other memories get them as ordinary input.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from policies.memories.contract import FastForm, Memory
from policies.memories.steps import MemoryStep, Queries, State

Shape = int | tuple[int, ...]
"""Of one input without its batch: F of a vector, `(C, L)` or `(C, H, W)` of a grid."""


class ReaderMemory(Memory):
    """Base class of the memories with readers.

    A subclass takes `input_size` and `queries` first, the latter the shape of each question by name, and in `forward`
    lets `queries` change the output but not the state. Without questions, the input is the question.
    """

    has_readers: ClassVar[bool] = True

    def forward(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        """One step: `x` `[B, ...]` is written, then `queries` are answered by what has been written."""
        raise NotImplementedError


class ReaderForm(FastForm):
    """A `FastForm` that may be asked: `step` and `unroll` take questions last."""

    def step(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        step: MemoryStep = self.memory(x, state, queries)
        return step
