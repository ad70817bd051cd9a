"""A memory over a sequence, by its step: the reference that every faster form is tested against."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from policies.memories.steps import MemoryStep, Queries, State, Unrolled, join, reset, stack


class Stepped(Protocol):
    """What of a `Memory` is needed here."""

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
    """Step `memory` through time.

    Args:
        memory: any memory.
        xs: inputs, `[T, B, ...]`.
        starts: bool `[T, B]`; `starts[t, b]` says that input `t` is the first of its episode: the state of `b` is reset
            *before* step `t`. None: no episode starts here.
        state: the state before the first step.
        resets: the steps at which any entry of `starts` may be true, if the host knows them; None: any step may be one.
        queries: questions by name, each `[T, B, ...]`, for a memory with readers.
        step: takes each step; None: the memory's `forward`, its equations.
    """
    steps = range(len(xs)) if resets is None else resets
    reset_at = frozenset(steps) if starts is not None else frozenset()
    initial = memory.initial_state(xs.shape[1]) if reset_at else {}
    take = step or memory
    taken: list[MemoryStep] = []
    for t, x in enumerate(xs):
        if t in reset_at:
            assert starts is not None
            state = reset(state, starts[t], initial)
        asked = () if queries is None else ({name: query[t] for name, query in queries.items()},)
        taken.append(take(x, state, *asked))
        state = taken[-1].state
    return stack(taken)


def unroll_segments(
    memory: Stepped,
    run: Callable[[Tensor, State], Unrolled],
    xs: Tensor,
    starts: Tensor | None,
    state: State,
    resets: Sequence[int],
) -> Unrolled:
    """As `unroll`, by a `run` over `[T', B, ...]` that is fast but knows no resets: the sequence is cut at them."""
    initial = memory.initial_state(xs.shape[1]) if starts is not None else {}
    parts: list[Unrolled] = []
    for begin, end in itertools.pairwise(sorted({0, len(xs), *resets})):
        if begin in resets and starts is not None:
            state = reset(state, starts[begin], initial)
        whole = begin == 0 and end == len(xs)  # a slice would make a gradient of its own
        parts.append(run(xs if whole else xs[begin:end], state))
        state = parts[-1].state
    return join(parts)
