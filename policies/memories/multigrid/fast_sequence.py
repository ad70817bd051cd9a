"""A grid's convolutional LSTM over many steps as one autograd function with a custom backward.

The gradient of the recurrent kernel is one convolution over all steps; autograd would sum one convolution per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from policies.memories.contract import MemoryStep, State, Unrolled
from policies.memories.multigrid.fast_layers import Layers
from policies.memories.multigrid.fast_native import CellLoops, channels_inside, usable
from policies.memories.multigrid.layers import Span, convolve, zero_at_starts
from policies.memories.shared.readers import ReaderForm
from policies.memories.steps import Queries, reset
from policies.memories.time.recording import Recording, ReplayedRecording, stacked

_sigmoid_backward = torch.ops.aten.sigmoid_backward.default
_tanh_backward = torch.ops.aten.tanh_backward.default


class Recurrence(torch.autograd.Function):
    """h_1 ... h_T of a convolutional LSTM whose inputs are already convolved; see `LSTMGrid`.

    h and the operands of the convolutions have the dtype of x_gates; cells and gates have that of c.

    Args:
        starts, resets: bool `[T, B]`, and the steps where it may be true: the state is zeroed there.
        x_gates: the input's part of i, f, o and the candidate, with biases, `[T * B, 4C, ...]`.
        h, c: the state before the first step, `[B, C, ...]`.
        kernel: `[4C, C, ...]`, W^hi, W^hf, W^ho, W^hc.
        peepholes: `[3, C, ...]`, W^ci, W^cf, W^co, or None.

    Returns:
        h of every step, `[T * B, C, ...]`; h and c after the last step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        starts: Tensor | None,
        resets: frozenset[int],
        x_gates: Tensor,
        h: Tensor,
        c: Tensor,
        kernel: Tensor,
        peepholes: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        first_h, first_c, batch = h, c, len(h)
        hidden, cells, all_gates = [], [], []
        cell = Cells(c, x_gates.dtype, peepholes)
        for t, x_part in enumerate(x_gates.chunk(len(x_gates) // batch)):
            h, c = zero_at_starts(h, t, starts, resets), zero_at_starts(c, t, starts, resets)
            gates, c, h = cell.forward(convolve(h, kernel), x_part, c)
            hidden.append(h)
            cells.append(c)
            all_gates.append(gates)
        rows = torch.cat(hidden)
        ctx.starts, ctx.resets = starts, resets
        ctx.save_for_backward(kernel, peepholes, first_h, first_c, rows, *cells, *all_gates)
        return rows, h, c

    @staticmethod
    def backward(ctx: Any, d_rows: Tensor, d_h: Tensor, d_c: Tensor) -> Any:
        kernel, peepholes, first_h, first_c, rows, *saved = ctx.saved_tensors
        length, rank = len(saved) // 2, kernel.dim() - 2
        cells, all_gates = saved[:length], saved[length:]
        cell = Cells(first_c, d_rows.dtype, peepholes)
        transposed_kernel = kernel.transpose(0, 1).flip(*range(2, 2 + rank))
        d_outs = d_rows.chunk(length)
        before_h, before_c = [first_h, *rows.chunk(length)[:-1]], [first_c, *cells[:-1]]
        for t in ctx.resets:
            before_h[t], before_c[t] = (
                zero_at_starts(part[t], t, ctx.starts, ctx.resets) for part in (before_h, before_c)
            )
        d_sums: list[Tensor] = []
        for t in reversed(range(length)):
            d_sum, d_c = cell.backward(all_gates[t], before_c[t], cells[t], d_h, d_outs[t], d_c)
            d_h = convolve(d_sum, transposed_kernel)
            d_h, d_c = (zero_at_starts(part, t, ctx.starts, ctx.resets) for part in (d_h, d_c))
            d_sums.append(d_sum)
        d_x_gates = torch.cat(d_sums[::-1])

        d_peepholes = None
        if peepholes is not None:
            seen = (torch.stack(before_c), torch.stack(before_c), torch.stack(cells))  # by i, f and o
            parts = zip(d_x_gates.view(length, -1, *d_x_gates.shape[1:]).chunk(4, 2), seen, strict=False)
            d_peepholes = torch.stack([(d_gate * c).sum((0, 1)) for d_gate, c in parts])
        ones, zeros = [1] * rank, [0] * rank
        _, d_kernel, _ = torch.ops.aten.convolution_backward(
            d_x_gates, torch.cat(before_h), kernel, None, ones, ones, ones, False, zeros, 1, [False, True, False]
        )
        return None, None, d_x_gates, d_h, d_c, d_kernel, d_peepholes


class Cells:
    """The part of a step after the convolution, forward and backward: by a C loop if usable, otherwise by torch.

    Args:
        reference: c, `[B, C, ...]`.
        dtype: dtype of h and of the operands of the convolutions.
        peepholes: `[3, C, ...]`, or None.
    """

    def __init__(self, reference: Tensor, dtype: torch.dtype, peepholes: Tensor | None) -> None:
        bf16 = dtype == torch.bfloat16
        native = (dtype == reference.dtype or (bf16 and reference.dtype == torch.float32)) and usable(reference)
        self.loops = CellLoops(reference, bf16, peepholes) if native else None
        self._dtype, self._peepholes = dtype, peepholes

    def forward(self, gates_h: Tensor, gates_x: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gates, c and h from the pre-activations `[B, 4C, ...]` and the previous c."""
        if self.loops is not None:
            gates_h, gates_x, c = map(channels_inside, (gates_h, gates_x, c))
            gates, after, h = (
                torch.empty_like(gates_h, dtype=c.dtype),
                torch.empty_like(c),
                torch.empty_like(c, dtype=self._dtype),
            )
            self.loops.forward(gates_h, gates_x, c, gates, after, h)
            return gates, after, h
        peepholes, channels = self._peepholes, c.shape[1]
        gates = gates_h.to(c.dtype).add_(gates_x)
        i, f, o, candidate = gates.chunk(4, 1)
        if peepholes is None:
            gates[:, : 3 * channels].sigmoid_()
        else:
            i_and_f = gates[:, : 2 * channels].view(-1, 2, *c.shape[1:])
            i_and_f.addcmul_(peepholes[:2], c.unsqueeze(1)).sigmoid_()
        c = (f * c).addcmul_(i, candidate.tanh_())
        if peepholes is not None:
            o.addcmul_(peepholes[2], c).sigmoid_()
        return gates, c, (o * c.tanh()).to(self._dtype)

    def backward(
        self, gates: Tensor, before: Tensor, after: Tensor, d_h: Tensor, d_out: Tensor, d_c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the gates' pre-activations and of the previous c, from d_h + d_out and d_c."""
        if self.loops is not None:
            gates, before, after = map(channels_inside, (gates, before, after))  # the forward pass may have used torch
            d_h, d_out = channels_inside(d_h.to(self._dtype)), channels_inside(d_out)
            d_c = d_c.clone(memory_format=torch.channels_last)
            d_sums = torch.empty_like(gates, dtype=self._dtype)
            self.loops.backward(gates, before, after, d_h, d_out, d_c, d_sums)
            return d_sums, d_c
        peepholes = self._peepholes
        i, f, o, candidate = gates.chunk(4, 1)
        tanh_cell = after.tanh()
        d_h = d_h.to(after.dtype) + d_out
        d_o = _sigmoid_backward(d_h * tanh_cell, o)
        d_c = d_c + _tanh_backward(d_h * o, tanh_cell)
        if peepholes is not None:
            d_c.addcmul_(d_o, peepholes[2])
        d_i, d_f = _sigmoid_backward(d_c * candidate, i), _sigmoid_backward(d_c * before, f)
        d_sums = torch.cat([d_i, d_f, d_o, _tanh_backward(d_c * i, candidate)], 1)
        d_c = d_c * f
        if peepholes is not None:
            d_c.addcmul_(d_i, peepholes[0]).addcmul_(d_f, peepholes[1])
        return d_sums.to(self._dtype), d_c


class FastMultigrid(ReaderForm):
    """Computes sequences layer by layer over all steps, and readers once over `T * B` rows.

    A CPU processes the grids of a layer one by one, with C loops if there is a compiler; a GPU together
    (`fast_layers.py`). With a decoder, LSTM layers run step by step.
    """

    memory: Any
    bf16 = False
    """Whether convolutions of sequences are in bfloat16; cells, states and outputs keep their dtype."""

    def unroll(
        self,
        xs: Tensor,
        starts: Tensor | None,
        state: State,
        resets: Sequence[int] | None,
        queries: Queries | None = None,
        layers: Layers | None = None,
    ) -> Unrolled:
        """As `FastForm.unroll`; `layers`: contains the steps if they have already run."""
        may_start = range(len(xs)) if resets is None else resets
        sequence = (len(xs), starts, frozenset(may_start if starts is not None else ()))
        layers = Layers() if layers is None and self.layered(state) else layers
        span = Span(
            *sequence, state.get("steps"), self.memory.answering(xs), self.to_fast_layout, Recurrence.apply, layers
        )
        flat = None if queries is None else {name: query.flatten(0, 1) for name, query in queries.items()}
        outputs, state, losses, grids = self.memory.write_and_read(xs.flatten(0, 1), state, flat, span)
        return Unrolled(span.steps_of(outputs), state, losses, None if grids is None else span.steps_of(grids))

    def layered(self, state: State) -> bool:
        """Whether the grids of a layer are processed together."""
        return self.memory.plan.decoder == "none" and not any(value.device.type == "cpu" for value in state.values())

    def to_fast_layout(self, grid: Tensor) -> Tensor:
        """The rows of a sequence in the layout and precision of the fastest convolution."""
        grid = channels_inside(grid) if usable(grid) else grid
        return grid.to(torch.bfloat16) if self.bf16 else grid

    def record(self, state: State, expected_steps: int) -> Recording:
        # in training, batch normalisation updates its statistics at every step; a replay would count steps twice
        if self.memory.plan.normalization == "batch":
            return Recording(self.memory, state)
        return LayerRecording(self, state) if self.layered(state) else super().record(state, expected_steps)

    def use_bf16(self) -> bool:
        self.bf16 = True
        return True


class LayerRecording(ReplayedRecording):
    """Stores the steps of all layers while acting; the sequence then needs no recurrence."""

    def __init__(self, form: FastMultigrid, state: State) -> None:
        super().__init__(form.memory, state)
        self.form, self.layers = form, Layers(acting=True)

    @torch.no_grad()
    def step(self, x: Tensor, starts: Tensor | None, *queries: Queries) -> MemoryStep:
        self.inputs.append((x, starts, *queries))
        if starts is not None:
            self.state = reset(self.state, starts, self.memory.initial_state(len(starts)))
        self.layers.starts = starts
        span = Span(steps=self.state.get("steps"), layer=self.layers)
        step = MemoryStep(
            *self.form.memory.write_and_read(x.detach(), self.state, queries[0] if queries else None, span)
        )
        self.state = step.state
        return step

    def unrolled(self) -> Unrolled:
        xs, starts, resets, queries = stacked(self.inputs)
        self.layers.acting = False
        return self.form.unroll(xs, starts, self.first, resets, queries, self.layers)
