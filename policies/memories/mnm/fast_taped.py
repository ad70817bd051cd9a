"""MNM over time on a CPU: whole sequences by C loops, as one autograd function.

For MNM-p this does the same as `fast_sequence.py`, which has the equations and explains why writes can be undone, but
without Python or torch in a step. MNM-g writes by `fast_gradient.h`. A call of the C loops processes several
environments over many steps, so that their memories and the slow weights, packed once per sequence, stay in the cache.
Products that do not depend on the loop are computed by torch for many steps at once: the input's part of the gates
before the loop, and the gradients of all slow weights after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.mnm.fast_native import Shape, make_loops, padded, padded_width, unpadded
from policies.memories.mnm.fast_sequence import Parts, SlowWeights
from policies.memories.time.sums import CHUNK_ROWS, WeightGradient, backward_in_chunks
from policies.native.loops import Arrays


class NativeTape:
    """`length` steps of MNM's controller and memory, stored while they run, without gradients.

    Args:
        length: maximum number of steps.
        start: hidden, cell `[B, d_h]` and read-out `[B, d_v]` before the first step.
        weights: M^l `[B, D_l, D_{l-1}]` before the first step; not modified.
        slow: the trained parameters.
        shape: sizes and options of the memory.
        divisors: divisor of the step size of each layer, `[L]`.
    """

    @torch.no_grad()
    def __init__(
        self,
        length: int,
        start: Parts,
        weights: Sequence[Tensor],
        slow: SlowWeights,
        shape: Shape,
        divisors: Tensor,
    ) -> None:
        hidden, cell, read_value = start
        batch, self.d_h = hidden.shape
        self.shape, heads = shape, shape.heads
        self.slow, self.divisors, self.count = slow, divisors, 0
        self.padded = [padded(m) for m in weights]
        self.weights = unpadded(self.padded, self.shape)
        """M^l after the last step."""

        def allocate(*shape: int, steps: int = length) -> Tensor:
            return hidden.new_empty(steps, batch, *shape)

        self.carried = allocate(self.d_h + self.shape.sizes[-1], steps=length + 1)
        """Hidden state and read-out, concatenated, before each step."""
        self.carried[0] = torch.cat([hidden, read_value], 1)
        self.cells = allocate(self.d_h, steps=length + 1)
        self.cells[0] = cell
        widths = [padded_width(m) for m in self.padded]
        self.steps: dict[str, Tensor] = {
            "gates": allocate(4 * self.d_h),
            "interactions": allocate(len(slow.interaction)),
            "betas": allocate(len(slow.rate)),
            "tanh_cells": allocate(self.d_h),
            "errors": allocate(),
        }
        self.layers: dict[str, list[Tensor]] = {
            "z": [allocate(heads, width) for width in widths],
            "e": [allocate(heads, width) for width in widths],
            "y": [allocate(2 * heads, width) for width in widths],
        }
        arrays: Arrays = {"carried": self.carried, "cells": self.cells, "divisors": divisors, "m": self.padded}
        arrays |= {"expected": hidden.new_empty(batch, heads, len(slow.feedback)), **self.steps, **self.layers}
        self._loops = make_loops(self.shape, slow, True, arrays)

    @torch.no_grad()
    def step(self, gates_x: Tensor) -> None:
        """Runs a step. `gates_x`: the input's part of the gates, with both biases, `[B, 4 d_h]`."""
        self.steps["gates"][self.count] = gates_x
        self._loops.forward(self.count, self.count + 1)
        self.count += 1

    @torch.no_grad()
    def run(self, xs: Tensor, w_x: Tensor, bias: Tensor) -> None:
        """Runs all steps. `xs`: `[T, B, F]`; `w_x` `[4 d_h, F]`, `bias` `[4 d_h]`: of the input's part of the gates."""
        chunk = max(1, CHUNK_ROWS // xs.shape[1])
        for begin in range(0, len(xs), chunk):
            x = xs[begin : begin + chunk]
            torch.addmm(bias, x.flatten(0, 1), w_x.t(), out=self.steps["gates"][begin : begin + len(x)].flatten(0, 1))
            self._loops.forward(begin, begin + len(x))
        self.count = len(xs)

    def state(self) -> Parts:
        """The controller's state after the last step."""
        carried = self.carried[self.count]
        return carried[:, : self.d_h], self.cells[self.count], carried[:, self.d_h :]

    def cut(self) -> None:
        """Frees the buffers of steps that did not run."""
        self.carried, self.cells = self.carried[: self.count + 1], self.cells[: self.count + 1]
        self.steps = {name: step[: self.count] for name, step in self.steps.items()}
        self.layers = {name: [layer[: self.count] for layer in layers] for name, layers in self.layers.items()}


class NativeSequence(torch.autograd.Function):
    """The steps of a `NativeTape`, with a custom backward.

    Inputs: the tape, empty or full; xs `[T, B, F]`; weight and bias of their part of the gates; and the tensors that
    the tape was created from, for their gradients: its start, the fields of `SlowWeights`, M^l. An empty tape runs its
    steps now. A full tape must have run them with these inputs.

    Outputs: hidden and read-out after each step, concatenated, `[T, B, d_h + d_v]`; Σ_i ‖f_{φ_t}(k^w_i) − v^w_i‖² of
    each step, `[T, B]`; the last cell `[B, d_h]`; the last M^l.
    """

    @staticmethod
    def forward(
        ctx: Any, tape: NativeTape, xs: Tensor, w_x: Tensor, bias: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        if not tape.count:
            tape.run(xs, w_x, bias)
        ctx.names, ctx.shape = (*tape.steps,), tape.shape
        ctx.set_materialize_grads(False)
        by_layer = (layer for layers in (tape.padded, *tape.layers.values()) for layer in layers)
        states = (tape.carried, tape.cells)
        ctx.save_for_backward(xs, w_x, tape.divisors, *tape.slow, *states, *tape.steps.values(), *by_layer)
        return (tape.carried[1:], tape.steps["errors"], tape.cells[-1], *tape.weights)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_after: Tensor | None, d_errors: Tensor | None, d_cell: Tensor | None, *d_last: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (xs, w_x, divisors), saved = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        slow, (carried, cells), saved = SlowWeights(*saved[:7]), saved[7:9], saved[9:]
        steps = dict(zip(ctx.names, saved, strict=False))
        saved, layers, heads = saved[len(steps) :], len(d_last), ctx.shape.heads
        m, z, e, y = (saved[layers * part : layers * (part + 1)] for part in range(4))
        m = [each.clone() for each in m]
        interactions = steps["interactions"]
        length, batch, d_h = steps["tanh_cells"].shape
        d_k, d_v = ctx.shape.sizes[0], ctx.shape.sizes[-1]

        def or_zeros(gradient: Tensor | None, reference: Tensor) -> Tensor:
            return torch.zeros_like(reference) if gradient is None else gradient.contiguous()

        d_cell = torch.zeros_like(cells[0]) if d_cell is None else d_cell.clone(memory_format=torch.contiguous_format)
        d_m = [torch.zeros_like(each) if d is None else padded(d) for each, d in zip(m, d_last, strict=True)]
        d_carried = torch.zeros_like(carried[0])
        chunk = min(length, max(1, CHUNK_ROWS // batch))
        d_gates, d_vectors, d_rates = (steps[name].new_empty(chunk, *steps[name].shape[1:]) for name in ctx.names[:3])
        d_expected = d_gates.new_empty(chunk, batch, heads, len(slow.feedback))
        arrays: Arrays = {
            **{"carried": carried, "cells": cells, "divisors": divisors, "m": m, "z": z, "e": e, "y": y},
            **steps,
        }
        arrays |= {"d_after": or_zeros(d_after, carried[1:]), "d_errors": or_zeros(d_errors, steps["errors"])}
        arrays |= {"d_cell": d_cell, "d_m": d_m, "d_carried": d_carried, "d_h": torch.empty_like(d_cell)}
        arrays |= {"d_gates": d_gates, "d_interactions": d_vectors, "d_rates": d_rates, "expected": d_expected}
        loops = make_loops(ctx.shape, slow, False, arrays)

        rate_input = interactions[:, :, -d_k:]
        values = interactions[:, :, 2 * heads * d_k : -d_k].unflatten(2, (heads, d_v))
        sums = [
            WeightGradient(d_gates, xs),
            WeightGradient(d_gates, carried[:-1]),
            WeightGradient(d_vectors, carried[1:, :, :d_h]),
        ]
        sums += [WeightGradient(d_rates, rate_input), WeightGradient(d_expected, values)]
        d_xs = torch.empty_like(xs, memory_format=torch.contiguous_format) if ctx.needs_input_grad[1] else None
        backward_in_chunks(loops, length, sums, d_gates, w_x, d_xs)
        (d_w_x, d_bias), (recurrent, _), *others = ((each.weight.t(), each.bias) for each in sums)
        d_slow = SlowWeights(recurrent, *(gradient for pair in others for gradient in pair))
        d_weights = unpadded(d_m, ctx.shape)
        d_start = (d_carried[:, :d_h], d_cell, d_carried[:, d_h:])
        return (None, d_xs, d_w_x, d_bias, *d_start, *d_slow, *d_weights)
