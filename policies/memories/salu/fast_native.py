"""SALU over time on a CPU: whole sequences by the C loops of `fast_sequence.c`, as one autograd function.

The table has the layout of `fast_sequence.py`; a step reads only the rows of its episode. Before the loops torch
computes the input's part of the gates, after them the gradients of all weights, for all steps at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.contract import State
from policies.memories.salu.fast_sequence import Tape
from policies.native.loops import Arrays, Loops

SOURCE = Path(__file__).with_name("fast_sequence.c")
BLOCK = 16
"""Number of environments that the loops process together."""
MAX_NUMBERS = 2**16
"""Maximum number of read weights of all heads; the loops keep two such arrays on the stack."""


def make_loops(loop_weights: tuple[Tensor, Tensor, Tensor], forward: bool, arrays: Arrays) -> Loops:
    """The loops over `arrays`, named as in the C struct, with the weights packed for the forward or backward pass."""
    recurrent, interaction, bias = loop_weights
    keys, values = arrays["keys"], arrays["values"]
    assert isinstance(keys, Tensor)
    assert isinstance(values, Tensor)
    (batch, slots, heads, key), capacity = keys.shape, capacity_of(arrays)
    sizes = (batch, interaction.shape[1], heads, key, values.shape[3], capacity, slots)
    loops = Loops(SOURCE, recurrent, sizes, BLOCK)
    return loops.pack({"recurrent": recurrent, "interaction": interaction}, forward).set({"bias": bias, **arrays})


def capacity_of(arrays: Arrays) -> int:
    """C, from the shape of the read weights `[T, B, H, C H]`."""
    heads, weights = arrays["weights"][0].shape[-2:]
    return int(weights) // int(heads)


class NativeTape(Tape):
    """A `Tape` whose steps are run by the loops; arguments as of `Tape`."""

    @torch.no_grad()
    def __init__(self, length: int, state: State, *loop_weights: Tensor) -> None:
        super().__init__(length, state, *loop_weights)
        reference, (batch, d_h), heads = self.hidden, self.hidden.shape, self.heads

        def allocate(*shape: int, steps: int = length) -> Tensor:
            return reference.new_empty(steps, batch, *shape)

        width = d_h + self.read_value.shape[1]
        self.arrays = {
            "starts": torch.zeros(length, batch, dtype=torch.bool),
            "first": torch.empty(length + 1, batch, dtype=torch.int64),
            "gates": allocate(4 * d_h),
            "inputs": allocate(width),
            "cells": allocate(d_h, steps=length + 1),
            "tanh_cells": allocate(d_h),
            "after": allocate(width),
            "vectors": allocate(len(self.loop_weights[1])),
            "weights": allocate(heads, self.capacity * heads),
            "keys": self.keys,
            "values": self.values,
        }
        self.arrays["first"][0] = self.first
        self.arrays["inputs"][0] = torch.cat([self.hidden, self.read_value], 1)
        self.arrays["cells"][0] = self.cell
        self._loops = make_loops(self.loop_weights, True, {**self.arrays})

    @torch.no_grad()
    def step(self, projected: Tensor, starts: Tensor | None) -> None:
        self.run(projected.unsqueeze(0), None if starts is None else starts.unsqueeze(0))

    @torch.no_grad()
    def run(self, projected: Tensor, starts: Tensor | None) -> None:
        """Runs several steps. `projected`: the input's part of the gates, `[T, B, 4 d_h]`; `starts`: `[T, B]`."""
        begin, end, d_h = self.count, self.count + len(projected), self.hidden.shape[1]
        self.arrays["gates"][begin:end] = projected
        if starts is not None:
            self.arrays["starts"][begin:end] = starts
            self.max_cleared = self.capacity + end
        self._loops.forward(begin, end)
        self.count, after = end, self.arrays["after"][end - 1]
        self.hidden, self.cell, self.read_value = after[:, :d_h], self.arrays["cells"][end], after[:, d_h:]
        self.first = self.arrays["first"][end].to(self.index.dtype)
        self.cleared = self.first.masked_fill(self.first < self.capacity, 0.0)


class NativeSequence(torch.autograd.Function):
    """The steps of a `NativeTape`, with a custom backward.

    Inputs as of `fast_sequence.TableSequence`. Outputs: hidden state and read-out after each step, concatenated,
    `[T, B, d_h + d_v]`; cell, keys and values after the last step.
    """

    @staticmethod
    def forward(ctx: Any, tape: NativeTape, gates_x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        state = tape.state()
        ctx.names, ctx.count = (*tape.arrays,), tape.count
        ctx.save_for_backward(*tape.loop_weights, tape.cleared_rows(), *tape.arrays.values())
        return (tape.arrays["after"][: tape.count], *(state[name].clone() for name in ("cell", "keys", "values")))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_after: Tensor, d_cell: Tensor, d_keys_last: Tensor, d_values_last: Tensor
    ) -> tuple[Tensor | None, ...]:
        recurrent, interaction, bias, cleared_rows, *saved = ctx.saved_tensors
        arrays, length = dict(zip(ctx.names, saved, strict=True)), ctx.count
        capacity, d_h = capacity_of(arrays), d_cell.shape[1]
        window = slice(length, length + capacity)
        d_keys, d_values = torch.zeros_like(arrays["keys"]), torch.zeros_like(arrays["values"])
        for table, last in ((d_keys, d_keys_last), (d_values, d_values_last)):
            table[:, window] = last.masked_fill(cleared_rows, 0.0)
        gradients: dict[str, Tensor] = {
            "d_after": d_after.contiguous(),
            "d_gates": torch.empty_like(arrays["gates"][:length]),
            "d_vectors": torch.empty_like(arrays["vectors"][:length]),
            "d_before": torch.zeros_like(d_after[0], memory_format=torch.contiguous_format),
            "d_cell": d_cell.clone(memory_format=torch.contiguous_format),
            "d_hidden": torch.empty_like(d_cell, memory_format=torch.contiguous_format),
            "d_keys": d_keys,
            "d_values": d_values,
        }
        make_loops((recurrent, interaction, bias), False, {**arrays, **gradients}).backward(0, length)
        d_gates, d_vectors, d_before = (gradients[name] for name in ("d_gates", "d_vectors", "d_before"))
        hiddens = arrays["after"][:length, :, :d_h]
        return (
            None,
            d_gates,
            *(d_before[:, :d_h], gradients["d_cell"], d_before[:, d_h:]),
            *(d_keys[:, :capacity], d_values[:, :capacity]),
            d_gates.flatten(0, 1).t() @ arrays["inputs"][:length].flatten(0, 1),
            d_vectors.flatten(0, 1).t() @ hiddens.flatten(0, 1),
            d_vectors.sum((0, 1)),
        )
