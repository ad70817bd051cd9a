"""The fast forms of MNM: steps with a custom backward for both write rules, and sequences.

On a CPU with a C compiler, sequences use C loops (`fast_taped.py`). Otherwise they use torch: MNM-p as one autograd
function (`fast_sequence.py`), MNM-g step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.memories.contract import MemoryStep, State, Unrolled
from policies.memories.mnm import fast_native, fast_sequence
from policies.memories.mnm.fast_sequence import LocalSequence, Parts, SlowWeights
from policies.memories.mnm.fast_step import GradientStep, LocalStep
from policies.memories.mnm.fast_taped import NativeSequence, NativeTape
from policies.memories.time.recording import Recording
from policies.memories.time.scopes import cached
from policies.memories.time.taped import TapedForm

Tape = fast_sequence.Tape | NativeTape


class FastMNM(TapedForm):
    """Steps and sequences. Sequences do not support a recall delay. Symbols as in `memory.py`."""

    memory: Any
    takes_resets = False

    def fits(self, length: int, resets: Sequence[int] | None, grad: bool) -> bool:
        few = resets is not None and len(resets) <= max(1, length // 4)
        return few and not self.memory.recall_delay

    def write_then_read(
        self, weights: list[Tensor], keys: Tensor, values: Tensor, steps: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """As `MNM.write_then_read`, with a custom backward that stores vectors instead of matrices per step."""
        raise NotImplementedError

    def step_with_torch(self, x: Tensor, state: State) -> MemoryStep:
        """One step with torch's operations."""
        step: MemoryStep = self.memory.advance(x, state, self.write_then_read)
        return step

    def step(self, x: Tensor, state: State) -> MemoryStep:
        if torch.is_grad_enabled() or self.memory.recall_delay:
            return self.step_with_torch(x, state)
        memory, (start, weights) = self.memory, self._parts(state)
        slow = cached(memory, "slow weights", self.slow_weights)
        if not (fast_native.usable(weights, memory.heads) and fast_native.worth_packing(slow, len(x))):
            return self.step_with_torch(x, state)
        products = cached(memory, "products", lambda: fast_native.products_of(slow))
        gates_x = F.linear(x, *cached(memory, "input weights", self.input_weights))
        new_carried, cell, errors, weights = fast_native.step(
            self._shape(), slow, products, memory.step_divisors, start, weights, gates_x
        )
        hidden, read_value = new_carried[:, : memory.hidden_size], new_carried[:, memory.hidden_size :]
        new_state = self.state_of((hidden, cell, read_value), weights)
        return MemoryStep(memory.output(new_carried), new_state, {"meta": errors / memory.meta_divisor})

    def record(self, state: State, expected_steps: int) -> Recording:
        """Records on tapes, unless resets are expected within 4 steps."""
        return super().record(state, expected_steps) if expected_steps >= 4 else Recording(self.memory, state)

    def tape(self, state: State, expected_steps: int) -> Steps:
        return Steps(self, self.empty_tape(state, self.slow_weights(), expected_steps), expected_steps)

    def output(self, state: State) -> Tensor:
        output: Tensor = self.memory.output(torch.cat([state["hidden"], state["read_value"]], 1))
        return output

    def finish(self, tape: Any, projected: Tensor, state: State) -> Unrolled:
        tape.tape.cut()
        return self.sequence(projected, state, tape.tape)

    def run(
        self, xs: Tensor, state: State, starts: Tensor | None = None, resets: Sequence[int] | None = None
    ) -> Unrolled:
        return self.sequence(xs, state)

    def sequence(self, xs: Tensor, state: State, tape: Tape | None = None) -> Unrolled:
        """A sequence without resets. `tape`: contains the steps if they have already run; None: they run now."""
        memory, slow = self.memory, self.slow_weights()
        start, weights = self._parts(state)
        tape = tape or self.empty_tape(state, slow, len(xs))
        if isinstance(tape, NativeTape):
            carried, errors, last_cell, *weights = NativeSequence.apply(  # type: ignore[no-untyped-call]
                tape, xs, *self.input_weights(), *start, *slow, *weights
            )
        else:
            carried, recalled, values, last_cell, *weights = LocalSequence.apply(  # type: ignore[no-untyped-call]
                tape, self.gates_of(xs), *start, *slow, *weights
            )
            errors = (recalled - values).square().sum((2, 3))
        hidden, read_value = carried[-1, :, : memory.hidden_size], carried[-1, :, memory.hidden_size :]
        new_state = self.state_of((hidden, last_cell, read_value), weights)
        return Unrolled(memory.output(carried), new_state, {"meta": errors / memory.meta_divisor})  # eq. (5)

    def empty_tape(self, state: State, slow: SlowWeights, length: int) -> Tape:
        """An empty tape of at most `length` steps that starts from `state`."""
        (hidden, cell, read_value), weights = self._parts(state)
        slow = SlowWeights(*(parameter.detach() for parameter in slow))
        start, matrices = (hidden.detach(), cell.detach(), read_value.detach()), [m.detach() for m in weights]
        if fast_native.usable(weights, self.memory.heads):
            return NativeTape(length, start, matrices, slow, self._shape(), self.memory.step_divisors)
        options = self.memory.heads, self.memory.tanh_output, self.memory.divisors
        return fast_sequence.Tape(length, start, matrices, slow, *options)

    def gates_of(self, xs: Tensor) -> Tensor:
        """The input's part of the controller's gates, with both biases: `[..., F]` to `[..., 4 d_h]`."""
        return F.linear(xs, *self.input_weights())

    def input_weights(self) -> tuple[Tensor, Tensor]:
        """The controller's weight and bias for the input's part of the gates."""
        cell = self.memory.controller
        return cell.weight_ih[:, : -self.memory.layer_sizes[-1]], cell.bias_ih + cell.bias_hh

    def slow_weights(self) -> SlowWeights:
        """The parameters in the layout of the loops. MNM-g has no feedback: its `feedback` has no rows."""
        memory, cell = self.memory, self.memory.controller
        empty = cell.weight_hh.new_zeros(0, memory.layer_sizes[-1])
        feedback = (memory.feedback.weight, memory.feedback.bias) if memory.local_update else (empty, empty[:, 0])
        return SlowWeights(
            torch.cat([cell.weight_hh, cell.weight_ih[:, -memory.layer_sizes[-1] :]], 1),
            *(memory.interaction.weight, memory.interaction.bias),
            *(memory.rate.weight, memory.rate.bias),
            *feedback,
        )

    def _shape(self) -> fast_native.Shape:
        memory = self.memory
        return fast_native.Shape((memory.key_size, *memory.layer_sizes), memory.heads, memory.tanh_output)

    def _parts(self, state: State) -> tuple[Parts, list[Tensor]]:
        weights = [state[f"weights_{index}"] for index in range(1, len(self.memory.layer_sizes) + 1)]
        return (state["hidden"], state["cell"], state["read_value"]), weights

    def state_of(self, controller: Parts, weights: list[Tensor]) -> State:
        """A state from hidden, cell and read-out, and from the matrices M^l."""
        state = dict(zip(("hidden", "cell", "read_value"), controller, strict=True))
        return state | {f"weights_{index}": m for index, m in enumerate(weights, start=1)}


class FastMNMp(FastMNM):
    """MNM-p: writes by the local rule."""

    def write_then_read(
        self, weights: list[Tensor], keys: Tensor, values: Tensor, steps: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        recalled, *updated = LocalStep.apply(  # type: ignore[no-untyped-call]
            keys, self.memory.feedback(values), steps.expand(-1, len(weights)), self.memory.tanh_output, *weights
        )
        return updated, recalled


class FastMNMg(FastMNM):
    """MNM-g: writes by a gradient step. Sequences need the C loops."""

    def fits(self, length: int, resets: Sequence[int] | None, grad: bool) -> bool:
        has_loops = fast_native.usable(self.memory.initial_weights(), self.memory.heads)
        return has_loops and super().fits(length, resets, grad)

    def write_then_read(
        self, weights: list[Tensor], keys: Tensor, values: Tensor, steps: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        recalled, *updated = GradientStep.apply(  # type: ignore[no-untyped-call]
            keys, values, steps.expand(-1, len(weights)), self.memory.tanh_output, *weights
        )
        return updated, recalled


class Steps:
    """A tape whose steps take inputs: it computes the input's part of the gates."""

    def __init__(self, form: FastMNM, tape: Tape, expected_steps: int) -> None:
        self.form, self.tape, self.expected_steps = form, tape, expected_steps
        self.weight, self.bias = form.input_weights()

    @property
    def full(self) -> bool:
        return self.tape.count == self.expected_steps

    def step(self, projected: Tensor, starts: Tensor | None) -> None:
        self.tape.step(F.linear(projected, self.weight, self.bias))

    def state(self) -> State:
        return self.form.state_of(self.tape.state(), self.tape.weights)
