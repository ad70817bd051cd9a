"""The memory contract: one step is a module, time is a function.

A memory is `initial_state` plus one step. Everything that persists is in its state, a dictionary of tensors whose
dimension 0 is the batch, so that resetting, carrying, detaching, saving and cutting minibatches are written once, here,
for every memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


class MemoryStep(NamedTuple):
    """What one step of a memory gives."""

    output: Tensor
    """Vector output, `[B, output_size]`."""
    state: State
    """The state after the step, same keys and shapes as before it."""
    losses: dict[str, Tensor]
    """The memory's own training terms by name, each `[B]`; empty for most memories."""
    grid: Tensor | None = None
    """Map output `[B, C, H, W]`, where the memory has an `output_grid`."""


class Unrolled(NamedTuple):
    """What `T` steps of a memory give."""

    outputs: Tensor
    """`[T, B, output_size]`."""
    state: State
    """The state after the last step."""
    losses: dict[str, Tensor]
    """Each `[T, B]`."""
    grids: Tensor | None = None
    """`[T, B, C, H, W]`, where the memory has an `output_grid`."""


@dataclass(frozen=True)
class Panel:
    """One labelled picture of a memory, for the viewer and TensorBoard."""

    image: Tensor
    """`[H, W]`: shown through a colour map; `[H, W, 3]`: RGB in 0..1."""
    x_label: str = ""
    y_label: str = ""
    limits: tuple[float, float] | None = None
    """Values at the two ends of the colour map; None: the image's own minimum and maximum."""
    over_time: Literal["columns", "similarity"] | None = None
    """How viewers show many steps at once. "columns": the image of each step, flattened, becomes a column beside those
    of the steps before. "similarity": the upper half of the rows of one step is compared with the lower half of
    another, row by row, for every two steps. None: they show the last step alone."""


class Memory(nn.Module):
    """Base class of every memory.

    A subclass sets `input_kind`, `output_size` and, where the output is a map as well, `output_grid`, and writes
    `initial_state` and `forward`. It may override `unroll` with a faster way to do the same: the conformance suite
    holds it equal to the plain function `unroll` of this module.
    """

    input_kind: ClassVar[Literal["vector", "grid", "either"]] = "vector"
    """What the encoder must deliver: `[B, F]`, or `[B, C, L]` / `[B, C, H, W]`; "either": a grid where the observation
    is one, else a vector."""
    has_readers: ClassVar[bool] = False
    """Whether questions go to readers of its own; see `policies.memories.shared.readers`."""
    static_shapes: bool = True
    """Whether a step does the same to the device whatever the values are, so that it can be captured as a CUDA graph;
    False where shapes, or what is done at all, hang on values."""
    output_size: int
    output_grid: tuple[int, int, int] | None = None

    def __init__(self) -> None:
        super().__init__()
        # Empty, and only there to say which device and dtype the module lives on, parameters or none.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        return self._buffers["_anchor"].device  # type: ignore[union-attr]

    @property
    def dtype(self) -> torch.dtype:
        return self._buffers["_anchor"].dtype  # type: ignore[union-attr]

    @classmethod
    def default_grid(cls, **kwargs: Any) -> tuple[int, ...]:
        """Where `input_kind` is "grid": `(L,)` or `(H, W)` of the grid that a flat observation is folded into.

        Args:
            kwargs: the arguments that the memory will be built with.
        """
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> State:
        """State at the first step of an episode: `[batch_size, ...]`, possibly expanded views, never written to."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        """One step. `x`: `[B, F]`, or `[B, C, L]` / `[B, C, H, W]` where `input_kind` is "grid"."""
        raise NotImplementedError

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None = None) -> Unrolled:
        """As the function `unroll`; override it where the same can be had faster."""
        return unroll(self, xs, starts, state, resets)

    def take_bf16(self) -> bool:
        """Multiply in bfloat16 in `unroll` from now on, and nowhere else; False: this memory cannot."""
        return False

    def record(self, state: State, room: int) -> Recording:
        """Begin a sequence that is stepped now and differentiated later; override it where that can be had faster.

        Args:
            state: before the first step.
            room: a guess of the steps between two resets, to make room for.
        """
        return Recording(self, state)

    def panels(self, state: State) -> dict[str, Panel]:
        """Named pictures of the state of the first batch entry."""
        return {}


class Recording:
    """A sequence that is stepped now and differentiated later, as A2C does. This plain one keeps every graph."""

    def __init__(self, memory: Memory, state: State) -> None:
        self.memory, self.state = memory, state
        self.steps: list[MemoryStep] = []

    def step(self, x: Tensor, starts: Tensor | None) -> MemoryStep:
        """A step of the memory on `x` `[B, ...]`, after a reset where `starts` `[B]` says so; None: nowhere.

        The output and state given are to act by, and the state is good until the next step.
        """
        if starts is not None:
            self.state = reset(self.state, starts, self.memory.initial_state(len(starts)))
        step: MemoryStep = self.memory(x, self.state)
        self.keep(step)
        return step

    def keep(self, step: MemoryStep) -> None:
        """Write a step down. Without a graph to keep it for, its state is kept until the next."""
        self.state = step.state
        self.steps.append(step if torch.is_grad_enabled() else step._replace(state={}))

    def unrolled(self) -> Unrolled:
        """All steps so far, with their graph: as `unroll` over the same inputs."""
        return stack(self.steps)._replace(state=self.state)


def reset(state: State, starts: Tensor, initial: State) -> State:
    """`initial` where `starts` `[B]` (bool) is true, `state` elsewhere."""
    return {
        name: torch.where(starts.view(-1, *[1] * (value.dim() - 1)), initial[name], value)
        for name, value in state.items()
    }


def unroll(
    memory: Memory,
    xs: Tensor,
    starts: Tensor | None,
    state: State,
    resets: Sequence[int] | None = None,
    queries: Mapping[str, Tensor] | None = None,
) -> Unrolled:
    """Step `memory` through time; the plain twin of every faster `Memory.unroll`.

    Args:
        memory: any memory.
        xs: inputs, `[T, B, ...]`.
        starts: bool `[T, B]`; `starts[t, b]` says that input `t` is the first of its episode: the state of `b` is reset
            *before* step `t`. None: nothing starts here.
        state: the state before the first step.
        resets: the steps at which any entry of `starts` may be true, where the host knows them without asking the
            device; None: any step may be one.
        queries: questions by name, each `[T, B, ...]`, for a memory with readers.
    """
    steps = range(len(xs)) if resets is None else resets
    reset_at = frozenset(steps) if starts is not None else frozenset()
    initial = memory.initial_state(xs.shape[1]) if reset_at else {}
    taken = []
    for t, x in enumerate(xs):
        if t in reset_at:
            assert starts is not None
            state = reset(state, starts[t], initial)
        asked = () if queries is None else ({name: query[t] for name, query in queries.items()},)
        taken.append(memory(x, state, *asked))
        state = taken[-1].state
    return stack(taken)


def stack(steps: Sequence[MemoryStep]) -> Unrolled:
    """Steps as a sequence."""
    return Unrolled(
        torch.stack([step.output for step in steps]),
        steps[-1].state,
        {name: torch.stack([step.losses[name] for step in steps]) for name in steps[0].losses},
        None if steps[0].grid is None else torch.stack([step.grid for step in steps if step.grid is not None]),
    )


def join(parts: Sequence[Unrolled]) -> Unrolled:
    """Sequences that follow one another as one."""
    grids = [part.grids for part in parts if part.grids is not None]
    return Unrolled(
        torch.cat([part.outputs for part in parts]),
        parts[-1].state,
        {name: torch.cat([part.losses[name] for part in parts]) for name in parts[0].losses},
        torch.cat(grids) if grids else None,
    )


def unroll_segments(
    memory: Memory,
    run: Callable[[Tensor, State], Unrolled],
    xs: Tensor,
    starts: Tensor,
    state: State,
    resets: Sequence[int],
) -> Unrolled:
    """As `unroll`, by a `run` over `[T', B, ...]` that is fast but knows no resets: the sequence is cut at them."""
    initial = memory.initial_state(xs.shape[1])
    parts = []
    for begin, end in itertools.pairwise(sorted({0, len(xs), *resets})):
        if begin in resets:
            state = reset(state, starts[begin], initial)
        parts.append(run(xs[begin:end], state))
        state = parts[-1].state
    return join(parts)


_host_reads = True


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Within, nothing may be read from the device: a graph is being captured, or would be."""
    global _host_reads
    before, _host_reads = _host_reads, False
    try:
        yield
    finally:
        _host_reads = before


def host_may_read() -> bool:
    """Whether a memory may let the host look at values, to be faster by it."""
    return _host_reads


def detach(state: State) -> State:
    """The same values, cut from the graph that made them."""
    return {name: value.detach() for name, value in state.items()}


def select(state: State, index: Tensor | slice) -> State:
    """The batch entries `index` of a state."""
    return {name: value[index] for name, value in state.items()}
