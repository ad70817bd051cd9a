"""Fast forms with tapes: a tape stores the steps while they run; one autograd node for all steps is created later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from policies.memories.contract import FastForm, MemoryStep, State, Unrolled
from policies.memories.steps import Queries, join, reset
from policies.memories.time.recording import Recording
from policies.memories.time.sums import CHUNK_ROWS
from policies.memories.time.unroll import unroll_segments
from policies.native.loops import Loops


class Tape(Protocol):
    """Stores the steps of one sequence."""

    def step(self, projected: Tensor, starts: Tensor | None) -> None:
        """Runs a step.

        Args:
            projected: `TapedForm.projected` of the input, `[B, ...]`.
            starts: bool `[B]`: where true, an episode starts with this step; None: nowhere.
        """

    def state(self) -> State:
        """The state after the last step, valid until the next step."""

    @property
    def full(self) -> bool:
        """Whether the tape cannot store another step."""


class LoopTape:
    """A tape whose steps are run by C loops, after the product of the input with a weight.

    Args:
        loops: the C loops.
        out: output buffer of that product for all steps, `[T, B, out]`.
        weight, bias: `[out, F]` and `[out]`.
        starts: buffer for the resets, bool `[T, B]`, all false; None: no episode starts on this tape.
    """

    def __init__(self, loops: Loops, out: Tensor, weight: Tensor, bias: Tensor, starts: Tensor | None) -> None:
        self.loops, self.out, self.weight, self.bias, self.starts = loops, out, weight, bias, starts
        self.count = 0
        if starts is not None:
            loops.set({"starts": starts})

    @property
    def full(self) -> bool:
        return self.count == len(self.out)

    @torch.no_grad()
    def step(self, projected: Tensor, starts: Tensor | None) -> None:
        """Runs a step. `projected`: the input, `[B, F]`; `starts`: bool `[B]`, or None."""
        torch.addmm(self.bias, projected, self.weight.t(), out=self.out[self.count])
        if starts is not None:
            assert self.starts is not None
            self.starts[self.count] = starts
        self.loops.forward(self.count, self.count + 1)
        self.count += 1

    @torch.no_grad()
    def run(self, xs: Tensor, starts: Tensor | None) -> None:
        """Runs all steps. `xs`: `[T, B, F]`; `starts`: bool `[T, B]`, or None."""
        if starts is not None:
            assert self.starts is not None
            self.starts.copy_(starts)
        chunk = max(1, CHUNK_ROWS // max(1, xs.shape[1]))
        for begin in range(0, len(xs), chunk):
            x, out = (part[begin : begin + chunk].flatten(0, 1) for part in (xs, self.out))
            torch.addmm(self.bias, x, self.weight.t(), out=out)
            self.loops.forward(begin, min(begin + chunk, len(xs)))
        self.count = len(xs)


class TapedForm(FastForm):
    """A fast form that stores steps on a `Tape`.

    A subclass implements the part of a step that depends only on its input (`projected`), creates empty tapes (`tape`),
    computes the output from a state (`output`), and creates the graph of a tape's steps (`finish`), usually with one
    autograd function that has a custom backward.
    """

    takes_resets: ClassVar[bool] = True
    """Whether a tape supports resets; if not, a new tape is created at each reset."""
    keeps_graph: ClassVar[bool] = False
    """Whether the steps run with their graph; if not, `finish` creates it."""

    def projected(self, xs: Tensor) -> Tensor:
        """The part of all steps that depends only on the inputs `[..., F]`."""
        return xs

    def tape(self, state: State, expected_steps: int) -> Tape:
        """An empty tape that starts from `state`, with space for at least `expected_steps` steps."""
        raise NotImplementedError

    def output(self, state: State) -> Tensor:
        """The output of the step that led to `state`, `[B, output_size]`."""
        raise NotImplementedError

    def finish(self, tape: Tape, projected: Tensor, state: State) -> Unrolled:
        """Creates the graph of the steps of `tape`.

        Args:
            tape: a tape from `tape(state, ...)`, with all its steps.
            projected: `self.projected` of their inputs, `[T, B, ...]`, with its graph; the inputs if `keeps_graph`.
            state: the state before the first step.
        """
        raise NotImplementedError

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        if starts is not None and not self.takes_resets:
            assert resets is not None, "a tape without resets needs them to be known: see `fits`"
            return unroll_segments(self.memory, self.run, xs, starts, state, resets)
        return self.run(xs, state, starts, resets)

    def run(
        self, xs: Tensor, state: State, starts: Tensor | None = None, resets: Sequence[int] | None = None
    ) -> Unrolled:
        """A sequence on one tape; arguments as of `unroll`."""
        projected, tape = self.projected(xs), self.tape(state, len(xs))
        reset_at = frozenset(range(len(xs)) if resets is None else resets)
        with torch.set_grad_enabled(self.keeps_graph and torch.is_grad_enabled()):
            for t, each in enumerate(projected if self.keeps_graph else projected.detach()):
                tape.step(each, starts[t] if starts is not None and t in reset_at else None)
        return self.finish(tape, projected, state)

    def record(self, state: State, expected_steps: int) -> Recording:
        return TapedRecording(self, state, expected_steps)


class TapedRecording(Recording):
    """A recording on tapes of a `TapedForm`. A new tape is created if one is full, or cannot reset."""

    def __init__(self, form: TapedForm, state: State, expected_steps: int) -> None:
        super().__init__(form.memory, state)
        self.form, self.first, self.expected_steps = form, state, expected_steps
        self.xs: list[Tensor] = []
        self.tapes: list[tuple[Tape, int, Tensor | None]] = []
        """Each tape, the index of its first step, and the resets before it."""

    def step(self, x: Tensor, starts: Tensor | None, *queries: Queries) -> MemoryStep:
        form = self.form
        with torch.set_grad_enabled(form.keeps_graph and torch.is_grad_enabled()):
            resets = starts if not form.takes_resets else None
            if resets is not None:
                self.state = reset(self.state, resets, form.memory.initial_state(len(resets)))
            if not self.tapes or resets is not None or self.tapes[-1][0].full:
                self.tapes.append((form.tape(self.state, self.expected_steps), len(self.xs), resets))
            tape = self.tapes[-1][0]
            tape.step(form.projected(x), starts if form.takes_resets else None)
        self.xs.append(x)
        self.state = tape.state()
        with torch.no_grad():
            return MemoryStep(form.output(self.state), self.state, {})

    def unrolled(self) -> Unrolled:
        """As `Recording.unrolled`, to be called once; after that only the graph holds the tapes."""
        form, state, parts = self.form, self.first, list[Unrolled]()
        tapes, self.tapes, inputs, self.xs = self.tapes, [], self.xs, []
        ends = [begin for _, begin, _ in tapes[1:]] + [len(inputs)]
        for (tape, begin, starts), end in zip(tapes, ends, strict=True):
            if starts is not None:
                state = reset(state, starts, form.memory.initial_state(len(starts)))
            xs = torch.stack(inputs[begin:end])
            parts.append(form.finish(tape, xs if form.keeps_graph else form.projected(xs), state))
            state = parts[-1].state
        return join(parts)
