"""Memories that are asked: what is written and what is asked come in by separate ways.

An observation whose entry begins with `query` is a question. A `ReaderMemory` shows it to its readers only, so it never
enters the state; every other memory sees it as input like the rest.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from policies.memories.contract import Memory
from policies.memories.steps import MemoryStep, Queries, State

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
