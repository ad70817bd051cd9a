"""Memories with readers: the input is written, questions are only answered.

Observation entries whose names begin with `query` are questions. A `ReaderMemory` passes them only to its readers, so
they do not affect the state. Other memories receive them as ordinary input.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from policies.memories.contract import FastForm, Memory
from policies.memories.steps import MemoryStep, Queries, State

Shape = int | tuple[int, ...]
"""Shape of an input without its batch: F for a vector, `(C, L)` or `(C, H, W)` for a grid."""


class ReaderMemory(Memory):
    """Base class of memories with readers.

    The first constructor arguments of a subclass are `input_size` and `queries`, the shape of each question by name. In
    `forward`, questions affect the output but not the state. Without questions, the input is the question.
    """

    has_readers: ClassVar[bool] = True

    def forward(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        """One step: writes `x` `[B, ...]`, then answers `queries` from the memory."""
        raise NotImplementedError


class ReaderForm(FastForm):
    """A `FastForm` of a memory with readers: `step` and `unroll` take the questions as last argument."""

    def step(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        step: MemoryStep = self.memory(x, state, queries)
        return step
