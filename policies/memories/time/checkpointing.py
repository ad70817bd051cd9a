"""Gradient checkpointing over time: stores the state before each segment and recomputes the rest in the backward pass.

After Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv:1604.06174). The forward pass stores the
inputs and the state before each segment. The backward pass processes the segments from last to first: it runs each
again by the memory's own `unroll` and back-propagates through it. With segments of s steps, T steps store T/s states
and the intermediate tensors of s steps instead of T, for at most one more forward pass.

Like PPO's replay, it requires that a step is a function of input, state, questions and parameters. Gradients equal
those of the whole sequence up to rounding, for any length: nothing is inverted, so no error is amplified. Reversing the
updates would not be general: plastic traces would be divided by 1 − η at every step, the linkage of a DNC by 1 − w[i] −
w[j], which may be zero, and the covariance of a Kanerva machine loses information.

`torch.utils.checkpoint` is not used: its reentrant form does not support `torch.autograd.grad`, and the other form
keeps the graph of the whole sequence and frees only autograd's tensors, not the tapes of fast forms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.contract import Memory
from policies.memories.steps import MemoryStep, Queries, State, Unrolled, join
from policies.memories.time.measure import stored_bytes
from policies.memories.time.recording import Recording, stacked

AUTO_BYTES = 2**30
"""On a CPU, a sequence that would store more than this many bytes is cut into segments by default: 1 GiB."""

AUTO_SHARE = 0.25
"""The same on a CUDA device, as a share of its total memory."""

SHORTEST = 8
"""Minimum length of a segment by default."""

PROBE = 64
"""Length of the longer of the two sequences that measure how much a step stores. The shorter has half of it,
which fills the shortest tape that a recording allocates."""

Shape = int | tuple[int, ...]


def unroll_by_segments(
    memory: Memory,
    xs: Tensor,
    starts: Tensor | None,
    state: State,
    resets: Sequence[int] | None = None,
    queries: Queries | None = None,
    *,
    segment: int,
) -> Unrolled:
    """As `memory.unroll`, in segments; the last one keeps its graph, because the backward pass starts there.

    Args:
        memory, xs, starts, state, resets, queries: as in `time.unroll`.
        segment: steps of each segment, at least 1; the last may be shorter.

    Raises:
        ValueError: `segment` is below 1.
    """
    if segment < 1:
        raise ValueError(f"a segment has {segment} steps; it must have at least 1")
    question_of = {} if queries is None else dict(queries)
    # split, not slices: each slice would allocate a gradient of the whole sequence
    parts = zip(*(torch.split(whole, segment) for whole in (xs, *question_of.values())), strict=True)
    done: list[Unrolled] = []
    for index, (x, *questions) in enumerate(parts):
        begin, end = index * segment, index * segment + len(x)
        resets_here = None if resets is None else [t - begin for t in resets if begin <= t < end]
        starts_here = None if starts is None or resets_here == [] else starts[begin:end]
        span = _Span(memory, starts_here, resets_here, state, (*question_of,))
        inputs = [x, *state.values(), *questions]
        done.append(span.run(inputs) if end == len(xs) or not torch.is_grad_enabled() else span.apply(inputs))
        state = done[-1].state
    return join(done)


class SegmentedRecording(Recording):
    """A recording that stores the inputs and the state before each segment.

    The steps run without a graph, by the memory's own `record`.

    Args:
        memory: any memory.
        state: the state before the first step.
        expected_steps: as in `Memory.record`.
        segment: steps of each segment, at least 1.

    Raises:
        ValueError: `segment` is below 1.
    """

    memory: Memory

    def __init__(self, memory: Memory, state: State, expected_steps: int, segment: int) -> None:
        if segment < 1:
            raise ValueError(f"a segment has {segment} steps; it must have at least 1")
        super().__init__(memory, state)
        self.first, self.expected_steps, self.segment = state, min(expected_steps, segment), segment
        self.inner: Recording | None = None
        self.segment_state = state
        """The state before the current segment."""
        self.inputs: list[tuple[Any, ...]] = []
        """Input, starts and questions of each step of the current segment."""
        self.spans: list[tuple[_Span, list[Tensor], Unrolled]] = []
        """Inputs, questions and results of each finished segment."""

    def step(self, x: Tensor, starts: Tensor | None, *queries: Queries) -> MemoryStep:
        with torch.no_grad():
            if self.inner is None:
                self.inner = self.memory.record(self.segment_state, self.expected_steps)
            step = self.inner.step(x.detach(), starts, *queries)
        self.inputs.append((x, starts, *queries))
        self.state = step.state
        if len(self.inputs) == self.segment:
            self._close()
        return step

    def _close(self) -> None:
        """Finishes the current segment."""
        assert self.inner is not None
        xs, starts, resets, queries = stacked(self.inputs)
        questions = queries or {}
        span = _Span(self.memory, starts, resets, self.segment_state, (*questions,))
        with torch.no_grad():
            values = self.inner.unrolled()
        values = values._replace(state=_without_views(values.state))
        self.spans.append((span, [xs, *questions.values()], values))
        self.inner, self.inputs, self.segment_state = None, [], values.state

    def unrolled(self) -> Unrolled:
        if self.inputs:
            self._close()
        state, done = self.first, []
        for span, (x, *questions), values in self.spans:
            before = (state[name] for name in span.state)  # the order of a state's entries may vary
            done.append(span.apply([x, *before, *questions], values))
            state = done[-1].state
        return join(done)


def max_stored_bytes(device: torch.device) -> int:
    """Maximum number of bytes that a sequence stores on `device` without being cut into segments."""
    if device.type != "cuda":
        return AUTO_BYTES
    return int(AUTO_SHARE * torch.cuda.mem_get_info(device)[1])


class Segments:
    """Unrolls a memory over whole sequences or in segments.

    Args:
        memory: any memory.
        setting: steps of a segment; 0: no segments; None: no segments for a sequence that stores at most
            `max_stored_bytes`; for others the length that stores least, √(T · state / step).
        shape: shape of one input of one environment.
        queries: shapes of the questions, if the memory has readers.

    Raises:
        ValueError: `setting` is negative.
    """

    def __init__(
        self, memory: Memory, setting: int | None, shape: Shape, queries: Mapping[str, Shape] | None = None
    ) -> None:
        if setting is not None and setting < 0:
            raise ValueError(f"bptt_segment is {setting}; it must be at least 0, or None to choose by memory use")
        self.memory, self.setting = memory, setting
        self.shape, self.queries = shape, queries
        self._bytes_per_step: dict[tuple[bool, int], int] = {}

    def unroll(
        self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None = None, *queries: Any
    ) -> Unrolled:
        """As `memory.unroll`."""
        if torch.is_grad_enabled():
            anywhere = starts is not None and (resets is None or len(resets) > max(1, len(xs) // 8))
            segment = self.length(len(xs), xs.shape[1], recorded=False, expected_steps=1 if anywhere else len(xs))
            if segment:
                return unroll_by_segments(self.memory, xs, starts, state, resets, *queries, segment=segment)
        return self.memory.unroll(xs, starts, state, resets, *queries)

    def record(self, state: State, expected_steps: int, steps: int, batch: int) -> Recording:
        """As `memory.record`, for a sequence of `steps` steps of `batch` environments."""
        segment = self.length(steps, batch, recorded=True, expected_steps=expected_steps)
        return (
            SegmentedRecording(self.memory, state, expected_steps, segment)
            if segment
            else self.memory.record(state, expected_steps)
        )

    def length(self, steps: int, batch: int, recorded: bool, expected_steps: int) -> int:
        """Length of the segments for `steps` steps of `batch` environments; 0: no segments.

        Args:
            steps, batch: T and B.
            recorded: whether the sequence is recorded; False: unrolled.
            expected_steps: as in `Memory.record`.
        """
        if self.setting is not None:
            return self.setting if self.setting < steps else 0
        if steps <= SHORTEST:  # one segment whatever a step stores, which need not be measured
            return 0
        if steps * batch * self.bytes_per_step(recorded, expected_steps) <= max_stored_bytes(self.memory.device):
            return 0
        segment = self.best(steps, recorded, expected_steps)
        return segment if segment < steps else 0

    def best(self, steps: int, recorded: bool, expected_steps: int) -> int:
        """The length s of segments for which T/s states and s steps take the fewest bytes."""
        state = self.memory.initial_state(1)
        state_bytes = sum(value.numel() * value.element_size() for value in state.values())
        return max(SHORTEST, math.isqrt(steps * state_bytes // self.bytes_per_step(recorded, expected_steps)))

    def bytes_per_step(self, recorded: bool, expected_steps: int) -> int:
        """Bytes that a step of one environment stores for the backward pass; measured once, on a few steps."""
        expected_steps = min(expected_steps, PROBE)
        if (recorded, expected_steps) not in self._bytes_per_step:
            with torch.enable_grad():
                self._try(PROBE // 2, recorded, expected_steps)  # fills the memory's caches
                few, many = (
                    stored_bytes(partial(self._try, steps, recorded, expected_steps)) for steps in (PROBE // 2, PROBE)
                )
            self._bytes_per_step[recorded, expected_steps] = max(1, (many - few) // (PROBE - PROBE // 2))
        return self._bytes_per_step[recorded, expected_steps]

    def _try(self, steps: int, recorded: bool, expected_steps: int) -> Unrolled:
        """A sequence of one environment with constant inputs, for the measurement."""

        def filled(shape: Shape) -> Tensor:
            sizes = (steps, 1, *((shape,) if isinstance(shape, int) else shape))
            return torch.full(sizes, 0.5, device=self.memory.device, dtype=self.memory.dtype)

        state, xs = self.memory.initial_state(1), filled(self.shape)
        starts = torch.zeros(steps, 1, dtype=torch.bool, device=xs.device) if expected_steps == 1 else None
        queries = () if self.queries is None else ({name: filled(shape) for name, shape in self.queries.items()},)
        if not recorded:
            return self.memory.unroll(xs, starts, state, None, *queries)
        recording = self.memory.record(state, min(expected_steps, steps))  # allocated in advance
        for t, x in enumerate(xs):
            questions = ({name: query[t] for name, query in each.items()} for each in queries)
            recording.step(x, None if starts is None else starts[t], *questions)
        return recording.unrolled()


class _Span:
    """A segment: the memory, the inputs that need no gradient, and the names of states, questions and losses."""

    def __init__(
        self,
        memory: Memory,
        starts: Tensor | None,
        resets: Sequence[int] | None,
        state: State,
        queries: tuple[str, ...],
    ) -> None:
        self.memory, self.starts, self.resets = memory, starts, resets
        self.state, self.queries = (*state,), queries
        self.losses: tuple[str, ...] = ()
        kind = next((value.device.type for value in state.values()), memory.device.type)
        self._autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def autocast(self) -> AbstractContextManager[None]:
        """The autocast settings of the first forward pass."""
        kind, dtype, enabled = self._autocast
        return torch.autocast(kind, dtype, enabled)

    def run(self, tensors: Sequence[Tensor]) -> Unrolled:
        """The segment by the memory's own `unroll`. `tensors`: inputs, then state, then questions."""
        x, *rest = tensors
        state = dict(zip(self.state, rest[: len(self.state)], strict=True))
        questions = dict(zip(self.queries, rest[len(self.state) :], strict=True))
        return self.memory.unroll(x, self.starts, state, self.resets, *((questions,) if self.queries else ()))

    def apply(self, tensors: Sequence[Tensor], values: Unrolled | None = None) -> Unrolled:
        """As `run`, but its graph stores only `tensors`. `values`: the results, if known."""
        parameters = [parameter for parameter in self.memory.parameters() if parameter.requires_grad]
        flat = _Segment.apply(self, values, len(tensors), *tensors, *parameters)  # type: ignore[no-untyped-call]
        outputs, *rest = flat
        state = dict(zip(self.state, rest[: len(self.state)], strict=True))
        rest = rest[len(self.state) :]
        losses = dict(zip(self.losses, rest[: len(self.losses)], strict=True))
        return Unrolled(outputs, state, losses, *rest[len(self.losses) :])

    def flat(self, result: Unrolled) -> list[Tensor]:
        """All tensors of a result, in the order that `apply` expects."""
        self.losses = (*result.losses,)
        grids = [] if result.grids is None else [result.grids]
        return [result.outputs, *(result.state[name] for name in self.state), *result.losses.values(), *grids]


class _Segment(torch.autograd.Function):
    """A `_Span` that is recomputed in the backward pass.

    Inputs: the span; its results, if known; the number of input tensors; these tensors; the memory's trained
    parameters.
    """

    @staticmethod
    def forward(ctx: Any, span: _Span, values: Unrolled | None, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.span, ctx.count = span, count
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        flat = span.flat(span.run(tensors[:count]) if values is None else values)
        return tuple(value.detach() for value in flat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[3:]
        saved, parameters = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip(saved, needed, strict=False)]
        with torch.enable_grad(), ctx.span.autocast():
            outputs = ctx.span.flat(ctx.span.run(inputs))
        known = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if gradient is not None and output.requires_grad
        ]
        d_inputs: list[Tensor | None] = [None] * len(needed)
        wanted = [(index, tensor) for index, tensor in enumerate((*inputs, *parameters)) if needed[index]]
        if known:
            roots, d_roots = zip(*known, strict=True)
            found = torch.autograd.grad(roots, [tensor for _, tensor in wanted], d_roots, allow_unused=True)
            for (index, _), gradient in zip(wanted, found, strict=True):
                d_inputs[index] = gradient
        return None, None, None, *d_inputs


def _without_views(state: State) -> State:
    """Copies values that are views of a larger storage: they would keep it alive, and could be overwritten later."""
    return {
        name: value.clone() if value.untyped_storage().nbytes() > value.numel() * value.element_size() else value
        for name, value in state.items()
    }
