"""The fast forms of MNM: steps of both write rules with hand-written derivatives, and sequences of MNM-p.

These by C loops (`fast_taped.py`) on a CPU where there is a compiler, else by torch's operations (`fast_sequence.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.memories.contract import FastForm, MemoryStep, State, Unrolled
from policies.memories.mnm import fast_native, fast_sequence
from policies.memories.mnm.fast_sequence import LocalSequence, Parts, SlowWeights
from policies.memories.mnm.fast_step import GradientStep, LocalStep
from policies.memories.mnm.fast_taped import NativeSequence, NativeTape
from policies.memories.steps import join, reset
from policies.memories.time.recording import Recording
from policies.memories.time.unroll import unroll_segments

Tape = fast_sequence.Tape | NativeTape


class FastMNMg(FastForm):
    """A step at a time, whose derivative is written by hand and keeps little."""

    memory: Any

    def step(self, x: Tensor, state: State) -> MemoryStep:
        step: MemoryStep = self.memory.advance(x, state, self.write_then_read)
        return step

    def write_then_read(
        self, weights: list[Tensor], keys: Tensor, values: Tensor, steps: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """As the memory's own."""
        recalled, *updated = GradientStep.apply(  # type: ignore[no-untyped-call]
            keys, values, steps.expand(-1, len(weights)), self.memory.squash_output, *weights
        )
        return updated, recalled

    def record(self, state: State, room: int) -> Recording:
        return Recording(self.memory, state)


class FastMNMp(FastMNMg):
    """Also sequences; these know no recall delay. Symbols as in `memory.py`."""

    def fits(self, length: int, resets: Sequence[int] | None, grad: bool) -> bool:
        few = resets is not None and len(resets) <= max(1, length // 4)
        return few and not self.memory.recall_delay

    def write_then_read(
        self, weights: list[Tensor], keys: Tensor, values: Tensor, steps: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        recalled, *updated = LocalStep.apply(  # type: ignore[no-untyped-call]
            keys, self.memory.feedback(values), steps.expand(-1, len(weights)), self.memory.squash_output, *weights
        )
        return updated, recalled

    def step(self, x: Tensor, state: State) -> MemoryStep:
        if torch.is_grad_enabled() or self.memory.recall_delay:
            return super().step(x, state)
        memory, (start, weights) = self.memory, self._parts(state)
        slow = self.slow_weights()
        if not (fast_native.usable(weights, memory.heads) and fast_native.worth_packing(slow, len(x))):
            return super().step(x, state)
        after, cell, errors, weights = fast_native.step(
            self._shape(), slow, memory.step_divisors, start, weights, self.gates_of(x)
        )
        following = self.state_of((after[:, : memory.hidden_size], cell, after[:, memory.hidden_size :]), weights)
        return MemoryStep(memory.output(after), following, {"meta": errors / memory.meta_divisor})

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        return unroll_segments(self.memory, self.run, xs, starts, state, resets or ())

    def record(self, state: State, room: int) -> Recording:
        """On tapes, where resets are not too near to one another."""
        return TapedRecording(self, state, room) if room >= 4 else super().record(state, room)

    def run(self, xs: Tensor, state: State, tape: Tape | None = None) -> Unrolled:
        """A sequence without a reset; `tape` where its steps were already taken."""
        memory, cell, slow = self.memory, self.memory.controller, self.slow_weights()
        start, weights = self._parts(state)
        tape = tape or self.tape(state, slow, len(xs))
        if isinstance(tape, NativeTape):
            after, errors, last_cell, *weights = NativeSequence.apply(  # type: ignore[no-untyped-call]
                tape, xs, cell.weight_ih[:, : xs.shape[-1]], cell.bias_ih + cell.bias_hh, *start, *slow, *weights
            )
        else:
            hidden, read_value, recalled, told, last_cell, *weights = LocalSequence.apply(  # type: ignore[no-untyped-call]
                tape, self.gates_of(xs), *start, *slow, *weights
            )
            after, errors = torch.cat([hidden, read_value], 2), (recalled - told).square().sum((2, 3))
        hidden, read_value = after[-1, :, : memory.hidden_size], after[-1, :, memory.hidden_size :]
        following = self.state_of((hidden, last_cell, read_value), weights)
        return Unrolled(memory.output(after), following, {"meta": errors / memory.meta_divisor})  # eq. (5)

    def tape(self, state: State, slow: SlowWeights, length: int) -> Tape:
        """A blank tape that starts from `state`."""
        (hidden, cell, read_value), weights = self._parts(state)
        slow = SlowWeights(*(parameter.detach() for parameter in slow))
        start, matrices = (hidden.detach(), cell.detach(), read_value.detach()), [m.detach() for m in weights]
        if fast_native.usable(weights, self.memory.heads):
            return NativeTape(length, start, matrices, slow, self._shape(), self.memory.step_divisors)
        form = self.memory.heads, self.memory.squash_output, self.memory.step_divisors
        return fast_sequence.Tape(length, start, matrices, slow, *form)

    def gates_of(self, xs: Tensor) -> Tensor:
        """The input's part of the controller's gates, with both biases: `[..., F]` to `[..., 4 d_h]`."""
        cell = self.memory.controller
        return F.linear(xs, cell.weight_ih[:, : xs.shape[-1]], cell.bias_ih + cell.bias_hh)

    def slow_weights(self) -> SlowWeights:
        """The parameters as the loops take them."""
        memory, cell = self.memory, self.memory.controller
        return SlowWeights(
            torch.cat([cell.weight_hh, cell.weight_ih[:, -memory.layer_sizes[-1] :]], 1),
            *(memory.interaction.weight, memory.interaction.bias),
            *(memory.rate.weight, memory.rate.bias),
            *(memory.feedback.weight, memory.feedback.bias),
        )

    def _shape(self) -> fast_native.Shape:
        memory = self.memory
        return fast_native.Shape((memory.key_size, *memory.layer_sizes), memory.heads, memory.squash_output)

    def _parts(self, state: State) -> tuple[Parts, list[Tensor]]:
        weights = [state[f"weights_{index}"] for index in range(1, len(self.memory.layer_sizes) + 1)]
        return (state["hidden"], state["cell"], state["read_value"]), weights

    def state_of(self, controller: Parts, weights: list[Tensor]) -> State:
        """A state from hidden, cell and read-out, and the matrices."""
        state = dict(zip(("hidden", "cell", "read_value"), controller, strict=True))
        return state | {f"weights_{index}": m for index, m in enumerate(weights, start=1)}


class TapedRecording(Recording):
    """A recording of MNM-p: the steps are taken without a graph, which is made from their tapes afterwards."""

    def __init__(self, form: FastMNMp, state: State, room: int) -> None:
        self.form, self.state, self.room = form, state, room
        self.first, self.slow = state, form.slow_weights()
        self.xs: list[Tensor] = []
        self.tapes: list[Tape] = []
        self.resets: list[Tensor | None] = []
        """For each tape, who was reset before it."""

    def step(self, x: Tensor, starts: Tensor | None) -> MemoryStep:  # type: ignore[override]
        form = self.form
        if starts is not None:
            self.state = reset(self.state, starts, form.memory.initial_state(len(starts)))
        if starts is not None or not self.tapes or self.tapes[-1].count == self.room:
            self.tapes.append(form.tape(self.state, self.slow, self.room))
            self.resets.append(starts)
        tape = self.tapes[-1]
        self.xs.append(x)
        with torch.no_grad():
            tape.step(form.gates_of(x))
            hidden, cell, read_value = tape.state()
            self.state = form.state_of((hidden, cell, read_value), tape.weights)
            return MemoryStep(form.memory.output(torch.cat([hidden, read_value], 1)), self.state, {})

    def unrolled(self) -> Unrolled:
        """As `Recording.unrolled`, once: the graph alone keeps the tapes, until its backward pass."""
        parts, state, begin = [], self.first, 0
        tapes, self.tapes, xs, self.xs = self.tapes, [], self.xs, []
        for tape, starts in zip(tapes, self.resets, strict=True):
            if starts is not None:
                state = reset(state, starts, self.form.memory.initial_state(len(starts)))
            tape.cut()
            parts.append(self.form.run(torch.stack(xs[begin : begin + tape.count]), state, tape))
            begin, state = begin + tape.count, parts[-1].state
        return join(parts)
