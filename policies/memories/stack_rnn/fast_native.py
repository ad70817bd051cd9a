"""The stack RNN over time on a CPU: whole sequences by the C loops of `fast_sequence.c`, as one autograd function.

A call of the loops processes several environments over many steps; episodes may start at any step. Before the loops
torch computes U x, after them the gradients of all weights, for many steps at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.steps import State
from policies.memories.time.sums import CHUNK_ROWS, WeightGradient, backward_in_chunks
from policies.memories.time.taped import LoopTape
from policies.native import loops
from policies.native.loops import Arrays, Loops

SOURCE = Path(__file__).with_name("fast_sequence.c")
BLOCK = 16
"""Number of environments that the loops process together."""
MAX_NUMBERS = 2**16
"""Maximum number of cells of a stack; the loops keep two such arrays on the C stack."""


class Sizes(NamedTuple):
    """Sizes and options of the C loops, in the order of the C file."""

    batch: int
    hidden: int
    stacks: int
    capacity: int
    top: int
    actions: int
    recurrent: bool


class Weights(NamedTuple):
    """The trained parameters in the form that the loops use."""

    input: Tensor
    """U, `[m, F]`."""
    bias: Tensor
    weight: Tensor
    """P and, with recurrence, R: `[m, stacks · k + m]`."""
    interface: Tensor
    """A, then D: `[stacks · (actions + 1), m]`."""
    interface_bias: Tensor


def usable(reference: Tensor, capacity: int) -> bool:
    """Whether the loops support this capacity, and the device and dtype of `reference`."""
    return capacity <= MAX_NUMBERS and loops.usable(SOURCE, reference)


def make_loops(sizes: Sizes, weights: Weights, forward: bool, arrays: Arrays) -> Loops:
    """The loops over `arrays`, named as in the C struct, with the weights packed for the forward or backward pass."""
    loops = Loops(SOURCE, weights.weight, sizes, BLOCK)
    loops.pack({"weight": weights.weight, "interface": weights.interface}, forward)
    return loops.set({"bias": weights.interface_bias, **arrays})


class NativeTape(LoopTape):
    """`length` steps of a stack RNN, stored while they run, without gradients.

    Args:
        length: maximum number of steps.
        hidden, stacks: the state before the first step; not modified.
        empty: stacks at the start of an episode, `[stacks, capacity]`.
        weights: the trained parameters.
        sizes: sizes and options.
    """

    @torch.no_grad()
    def __init__(
        self, length: int, hidden: Tensor, stacks: Tensor, empty: Tensor, weights: Weights, sizes: Sizes
    ) -> None:
        self.sizes, self.weights = sizes, Weights(*(weight.detach() for weight in weights))
        batch, first = sizes.batch, hidden.detach().contiguous()

        def allocate(*shape: int, steps: int = length) -> Tensor:
            return first.new_empty(steps, batch, *shape)

        self.arrays = {
            "inputs": allocate(weights.weight.shape[1]),
            "after": allocate(sizes.hidden),
            "parameters": allocate(len(weights.interface)),
            "cells": allocate(sizes.stacks, sizes.capacity, steps=length + 1),
            "empty": empty.detach().contiguous(),
            "first_hidden": first,
        }
        self.arrays["cells"][0] = stacks
        starts = torch.zeros(length, batch, dtype=torch.bool)
        loops, after = make_loops(sizes, self.weights, True, {**self.arrays}), self.arrays["after"]
        super().__init__(loops, after, self.weights.input, self.weights.bias, starts)

    def state(self) -> State:
        """The state after the last step: views."""
        hidden = self.arrays["after"][self.count - 1] if self.count else self.arrays["first_hidden"]
        return {"hidden": hidden, "stacks": self.arrays["cells"][self.count]}


class NativeSequence(torch.autograd.Function):
    """The steps of a `NativeTape`, with a custom backward.

    Inputs: the tape, empty or full; starts, bool `[T, B]`, or None; xs `[T, B, F]`; hidden state and stacks before the
    first step; the fields of `Weights`. An empty tape runs its steps now.

    Outputs: hidden state after each step `[T, B, m]`; stacks after the last step.
    """

    @staticmethod
    def forward(
        ctx: Any, tape: NativeTape, starts: Tensor | None, xs: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not tape.count:
            tape.run(xs, starts)
        ctx.sizes, ctx.starts, ctx.names, ctx.count = tape.sizes, tape.starts, (*tape.arrays,), tape.count
        ctx.save_for_backward(xs, *tape.weights, *tape.arrays.values())
        return tape.arrays["after"][: tape.count], tape.arrays["cells"][tape.count].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_after: Tensor, d_cells: Tensor) -> tuple[Tensor | None, ...]:
        xs, *saved = ctx.saved_tensors
        weights, arrays = Weights(*saved[:5]), dict(zip(ctx.names, saved[5:], strict=True))
        length, batch = ctx.count, ctx.sizes.batch
        d_cells = d_cells.clone(memory_format=torch.contiguous_format)
        d_hidden = torch.zeros_like(arrays["after"][0])
        chunk = min(length, max(1, CHUNK_ROWS // max(1, batch)))
        d_sums, d_parameters = (
            arrays[name].new_empty(chunk, *arrays[name].shape[1:]) for name in ("after", "parameters")
        )
        gradients = {
            "d_after": d_after.contiguous(),
            "d_sums": d_sums,
            "d_parameters": d_parameters,
            "d_hidden": d_hidden,
        }
        gradients |= {"d_cells": d_cells, "d_inputs": torch.empty_like(arrays["inputs"][0]), "starts": ctx.starts}
        loops = make_loops(ctx.sizes, weights, False, {**arrays, **gradients})
        sums = (
            WeightGradient(d_sums, xs),
            WeightGradient(d_sums, arrays["inputs"]),
            WeightGradient(d_parameters, arrays["after"]),
        )
        d_xs = torch.empty_like(xs, memory_format=torch.contiguous_format) if ctx.needs_input_grad[2] else None
        backward_in_chunks(loops, length, sums, d_sums, weights.input, d_xs)
        from_x, weight, interface = sums
        d_weights = Weights(from_x.weight.t(), from_x.bias, weight.weight.t(), interface.weight.t(), interface.bias)
        return (None, None, d_xs, d_hidden, d_cells, *d_weights)
