"""Unrolls a memory over time step by step: the reference implementation for all fast forms."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from policies.memories.steps import MemoryStep, Queries, State, Unrolled, join, reset, stack


class Stepped(Protocol):
    """The part of `Memory` that is used here."""

    def initial_state(self, batch_size: int) -> State: ...

    def __call__(self, *args: Any) -> Any: ...


def unroll(
    memory: Stepped,
    xs: Tensor,
    starts: Tensor | None,
    state: State,
    resets: Sequence[int] | None = None,
    queries: Queries | None = None,
    step: Callable[..., MemoryStep] | None = None,
) -> Unrolled:
    """Unrolls `memory` over time.

    Args:
        memory: any memory.
        xs: inputs, `[T, B, ...]`.
        starts: bool `[T, B]`; where true, the input is the first of its episode, and the state is reset *before* the
            step. None: no episode starts.
        state: the state before the first step.
        resets: the steps at which any entry of `starts` may be true, if the host knows them; None: any step.
        queries: questions by name, each `[T, B, ...]`, for a memory with readers.
        step: function for one step; None: the memory's `forward`, its equations.
    """
    steps = range(len(xs)) if resets is None else resets
    reset_at = frozenset(steps) if starts is not None else frozenset()
    initial = memory.initial_state(xs.shape[1]) if reset_at else {}
    run_step = step or memory
    results: list[MemoryStep] = []
    for t, x in enumerate(xs):
        if t in reset_at:
            assert starts is not None
            state = reset(state, starts[t], initial)
        questions = () if queries is None else ({name: query[t] for name, query in queries.items()},)
        results.append(run_step(x, state, *questions))
        state = results[-1].state
    return stack(results)


def unroll_segments(
    memory: Stepped,
    run: Callable[[Tensor, State], Unrolled],
    xs: Tensor,
    starts: Tensor | None,
    state: State,
    resets: Sequence[int],
) -> Unrolled:
    """As `unroll`, by a fast `run` over `[T', B, ...]` without resets: the sequence is cut at `resets`."""
    initial = memory.initial_state(xs.shape[1]) if starts is not None else {}
    parts: list[Unrolled] = []
    for begin, end in itertools.pairwise(sorted({0, len(xs), *resets})):
        if begin in resets and starts is not None:
            state = reset(state, starts[begin], initial)
        whole = begin == 0 and end == len(xs)  # a slice would allocate a gradient of the whole sequence
        parts.append(run(xs if whole else xs[begin:end], state))
        state = parts[-1].state
    return join(parts)
