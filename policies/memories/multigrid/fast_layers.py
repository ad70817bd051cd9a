"""The convolutional LSTMs of a layer with few kernels, for a GPU: all grids and steps as one autograd function.

On a GPU the number of kernels limits the speed of small grids. After the convolutions all operations are pointwise, so
the cells of all grids of a layer are rows of one matrix, `[R, C]` with R = Σ B H W. A step is one convolution per grid,
one fused LSTM cell, and a few operations for the peepholes of the output gate; the custom backward is similar. Steps
that run while acting are stored, and training does not repeat them. Gates are in torch's order: i, f, g, o.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.contract import State
from policies.memories.multigrid.layers import LSTMGrid, Span, convolve
from policies.memories.shared import fused_cells

_aten = torch.ops.aten
Parts = Sequence[list[Tensor]]
"""For each grid of a layer its inputs: the neighbours in the pyramid below."""


class SavedStep(NamedTuple):
    """The values that a step stores for the backward pass."""

    starts: Tensor | None
    """Bool `[R, 1]`, true where an episode starts; None: nowhere."""
    h: list[Tensor]
    """h of each grid before the step, after any reset."""
    c: Tensor
    """c before the step, after any reset, `[R, C]`."""
    after: Tensor
    """c after the step, `[R, C]`."""
    gates: Tensor
    """The gates from `fused_cells.lstm`, `[R, 4 C]`."""
    out: Tensor
    """tanh(c) and the pre-activation of the output gate, concatenated, `[R, 2 C]`; without peepholes, h."""


class LayerTape:
    """Steps of all grids of a layer, stored while they run, without gradients.

    Args:
        grids: the grids of the layer, without a decoder.
        batch: B.
    """

    @torch.no_grad()
    def __init__(self, grids: Sequence[LSTMGrid], batch: int) -> None:
        self.channels, self.shapes = grids[0].shape[0], [grid.shape[1:] for grid in grids]
        self.cells = [math.prod(shape) for shape in self.shapes]
        self.at = [slice(*ends) for ends in pairwise([0, *accumulate(batch * cells for cells in self.cells)])]
        self.weights = [plane(in_order(grid.conv.weight)) for grid in grids]
        self.biases = [in_order(grid.conv.get_parameter("bias")) for grid in grids]
        self.zeros = self.weights[0].new_zeros(self.at[-1].stop, 4 * self.channels)
        self.cell_peepholes: tuple[Tensor, Tensor] | None = None
        """The peepholes of each row: of i and f, `[R, 4, C]` with zeros for g and o; of o, `[R, C]`."""
        peepholes = [grid.peepholes[0] for grid in grids if grid.peepholes is not None]
        if peepholes:
            by_cell = [each.flatten(2).permute(2, 0, 1) for each in peepholes]
            by_row = torch.cat([each.expand(batch, *each.shape).flatten(0, 1) for each in by_cell])
            self.cell_peepholes = F.pad(by_row[:, :2], [0, 0, 0, 2]), by_row[:, 2].contiguous()
        self.steps: list[SavedStep] = []
        self.hidden: list[Tensor] = []
        """h after each step, `[R, C]`."""

    def split(self, rows: Tensor) -> list[Tensor]:
        """Rows `[..., R, n]` as grids `[N, n, ...]`, with channels innermost in memory."""
        parts = (
            rows[..., at, :].reshape(-1, *size, rows.shape[-1]) for at, size in zip(self.at, self.shapes, strict=True)
        )
        return [part.movedim(-1, 1) for part in parts]

    def starts(self, starts: Tensor) -> Tensor:
        """`starts` `[B]` for each row, `[R, 1]`."""
        return torch.cat([starts.repeat_interleave(cells) for cells in self.cells]).unsqueeze(1)

    def cell(self, gates: Tensor, h: list[Tensor], c: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Runs a step; returns h and c after it, `[R, C]`.

        Args:
            gates: pre-activations, the sum of both convolutions, `[R, 4 C]`.
            h, c, starts: as in `SavedStep`.
        """
        if self.cell_peepholes is None:
            hidden, after, activations = fused_cells.lstm(gates, self.zeros, c)
            out = hidden
        else:
            peepholes_if, peepholes_o = self.cell_peepholes
            _, after, activations = fused_cells.lstm(gates, (peepholes_if * c.unsqueeze(1)).flatten(1), c)
            out = torch.empty_like(gates[:, : 2 * self.channels])
            torch.tanh(after, out=out[:, : self.channels])
            torch.addcmul(gates[:, 3 * self.channels :], peepholes_o, after, out=out[:, self.channels :])
            hidden = F.glu(out, 1)
        self.steps.append(SavedStep(starts, h, c, after, activations, out))
        self.hidden.append(hidden)
        return hidden, after

    def backward(self, saved: SavedStep, d_h: Tensor, d_c: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the pre-activations and of c before the step, from those of h and c after it."""
        if self.cell_peepholes is None:
            return fused_cells.lstm_backward(d_h, d_c, saved.c, saved.after, saved.gates)
        peepholes_if, peepholes_o = self.cell_peepholes
        d_out, channels = _aten.glu_backward(d_h, saved.out, 1), self.channels
        d_c = d_c + _aten.tanh_backward(d_out[:, :channels], saved.out[:, :channels])
        d_c.addcmul_(d_out[:, channels:], peepholes_o)
        d_gates, d_c = fused_cells.lstm_backward(self.zeros[:, :channels], d_c, saved.c, saved.after, saved.gates)
        d_gates[:, 3 * channels :] = d_out[:, channels:]
        for gate in range(2):
            d_c.addcmul_(d_gates[:, gate * channels : (gate + 1) * channels], peepholes_if[:, gate])
        return d_gates, d_c

    @torch.no_grad()
    def act(self, parts: Parts, hs: list[Tensor], cs: list[Tensor], starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Runs a step while acting; returns h and c after it, `[R, C]`.

        Args:
            parts: the inputs of each grid.
            hs, cs: h and c of each grid before the step, after any reset.
            starts: bool `[B]`, true where they were reset; None: nowhere.
        """
        sums = []
        for entering, h, weight, bias in zip(parts, hs, self.weights, self.biases, strict=True):
            x = torch.cat([plane(part).movedim(1, 3) for part in (*entering, h)], 3).movedim(3, 1)
            sums.append(rows_of(conv(x, weight, bias)))
        c = self.steps[-1].after if self.steps and starts is None else joined(cs)
        return self.cell(
            torch.cat(sums) if len(sums) > 1 else sums[0], hs, c, None if starts is None else self.starts(starts)
        )

    @torch.no_grad()
    def run(self, sums: Tensor, hs: Sequence[Tensor], cs: Sequence[Tensor], span: Span, kernels: list[Tensor]) -> None:
        """Runs all steps of a sequence.

        Args:
            sums: the input's part of the gates, `[T, R, 4 C]`.
            hs, cs: h and c of each grid before the first step.
            span: contains the resets.
            kernels: recurrent kernel of each grid, in the precision of the convolutions.
        """
        h, c = joined(hs), joined(cs)
        for t, x in enumerate(sums):
            starts = None
            if span.starts is not None and t in span.resets:
                starts = self.starts(span.starts[t])
                h, c = h.masked_fill(starts, 0), c.masked_fill(starts, 0)
            grids, gates = self.split(h), torch.empty_like(x)
            for at, grid, kernel in zip(self.at, grids, kernels, strict=True):
                torch.add(x[at], rows_of(conv(plane(grid).to(kernel.dtype), kernel)), out=gates[at])
            h, c = self.cell(gates, grids, c, starts)


class LayerSequence(torch.autograd.Function):
    """The steps of a `LayerTape`, with a custom backward.

    Inputs: the tape, empty or full; the span; for each grid the input's part of the gates `[T * B, 4 C, ...]`, h and c
    before the first step, the recurrent kernel `[4 C, C, ...]`, and any peepholes `[3, C, ...]`. An empty tape runs its
    steps now.

    Outputs: for each grid h of every step `[T * B, C, ...]`; h after the last step; c after the last step.
    """

    @staticmethod
    def forward(ctx: Any, tape: LayerTape, span: Span, *tensors: Tensor) -> tuple[Tensor, ...]:
        xs, hs, cs, kernels, *_ = chunks(tensors, len(tape.at))
        kernels = [innermost(plane(kernel).to(xs[0].dtype)) for kernel in kernels]
        if not tape.steps:
            sums = torch.cat([x.movedim(1, -1).reshape(span.length, -1, x.shape[1]) for x in xs], 1)
            tape.run(sums.to(cs[0].dtype), hs, cs, span, kernels)
        ctx.tape, ctx.kernels, ctx.rank = tape, kernels, xs[0].dim() - 2
        rows = (part.to(xs[0].dtype) for part in tape.split(torch.stack(tape.hidden)))
        return (*rows, *tape.split(tape.hidden[-1].clone()), *tape.split(tape.steps[-1].after.clone()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        tape, kernels, steps = ctx.tape, ctx.kernels, ctx.tape.steps
        d_rows, d_hs, d_cs = chunks(d_outputs, len(tape.at))
        d_c = joined(d_cs)
        d_out = torch.cat([d.movedim(1, -1).reshape(len(steps), -1, d.shape[1]) for d in d_rows], 1).to(d_c.dtype)
        d_h, d_gates = joined(d_hs).to(d_c.dtype) + d_out[-1], list[Tensor]()
        backwards = [innermost(kernel.transpose(0, 1).flip(2, 3)) for kernel in kernels]
        for t in reversed(range(len(steps))):
            saved, before = steps[t], d_out[t - 1] if t else tape.zeros[:, : tape.channels]
            d_gate, d_c = tape.backward(saved, d_h, d_c)
            d_gates.append(d_gate)
            d_h = torch.empty_like(before)
            for at, grid, kernel in zip(tape.at, tape.split(d_gate), backwards, strict=True):
                d_state = rows_of(conv(plane(grid).to(kernel.dtype), kernel))
                d_state = d_state if saved.starts is None else d_state.masked_fill(saved.starts[at], 0)
                torch.add(before[at], d_state, out=d_h[at])
            if saved.starts is not None:
                d_c = d_c.masked_fill(saved.starts, 0)
        d_sums = torch.stack(d_gates[::-1])
        d_xs = [d.to(kernels[0].dtype) for d in tape.split(d_sums)]
        d_kernels = []
        for index, (d_x, kernel) in enumerate(zip(d_xs, kernels, strict=True)):
            h = plane(torch.cat([saved.h[index] for saved in steps])).to(kernel.dtype)
            arguments = plane(d_x), h, kernel, None, [1, 1], padding(kernel), [1, 1], False, [0, 0], 1
            d_kernel = _aten.convolution_backward(*arguments, [False, True, False])[1]
            d_kernels.append(d_kernel if ctx.rank == 2 else d_kernel.squeeze(2))
        d_peephole = [] if tape.cell_peepholes is None else d_peepholes(tape, d_sums)
        return (None, None, *d_xs, *tape.split(d_h), *tape.split(d_c), *d_kernels, *d_peephole)


def d_peepholes(tape: LayerTape, d_sums: Tensor) -> list[Tensor]:
    """Gradients of the peepholes of each grid, `[3, C, ...]`."""
    before, after = (torch.stack(each) for each in zip(*((saved.c, saved.after) for saved in tape.steps), strict=True))
    i, f, _, o = d_sums.chunk(4, 2)
    by_row = torch.cat([i * before, f * before, o * after], 2).sum(0)
    gradients = []
    for at, cells, shape in zip(tape.at, tape.cells, tape.shapes, strict=True):
        grid_part = by_row[at].view(-1, cells, 3, tape.channels).sum(0)
        gradients.append(grid_part.permute(1, 2, 0).reshape(3, tape.channels, *shape))
    return gradients


class Layers:
    """`Span.layer`: computes a layer over a sequence, or while acting step by step.

    Args:
        acting: whether the steps run one by one; the tapes then store them.
    """

    def __init__(self, acting: bool = False) -> None:
        self.acting = acting
        self.tapes: dict[str, LayerTape] = {}
        self.starts: Tensor | None = None
        """While acting: bool `[B]`, true where the state was reset before this step."""

    def __call__(self, grids: Sequence[LSTMGrid], parts: Parts, state: State, span: Span) -> list[tuple[Tensor, State]]:
        hs, cs = ([state[f"{name}_{grid.key}"] for grid in grids] for name in ("hidden", "cell"))
        tape = self.tapes.pop(grids[0].key, None) or LayerTape(grids, len(hs[0]))
        if self.acting:
            self.tapes[grids[0].key] = tape
            rows, hs, cs = (tape.split(each) for each in self._step(tape, parts, hs, cs))
        else:
            weights = [in_order(grid.conv.weight).tensor_split([grid.inputs], 1) for grid in grids]
            joint = (torch.cat(entering, 1) if len(entering) > 1 else entering[0] for entering in parts)
            xs = [
                convolve(x, of_x, in_order(grid.conv.get_parameter("bias")))
                for grid, x, (of_x, _) in zip(grids, joint, weights, strict=True)
            ]
            cell_peepholes = [grid.peepholes[0] for grid in grids if grid.peepholes is not None]
            inputs = (*xs, *hs, *cs, *(of_h for _, of_h in weights), *cell_peepholes)
            rows, hs, cs = chunks(LayerSequence.apply(tape, span, *inputs), len(grids))  # type: ignore[no-untyped-call]
        results = []
        for grid, grid_rows, h, c in zip(grids, rows, hs, cs, strict=True):
            normal, changed = grid.normal(grid_rows, state, span)
            results.append((normal, {f"hidden_{grid.key}": h, f"cell_{grid.key}": c, **changed}))
        return results

    def _step(self, tape: LayerTape, parts: Parts, hs: list[Tensor], cs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        h, c = tape.act(parts, hs, cs, self.starts)
        return h, h, c


def in_order(weight: Tensor) -> Tensor:
    """Reorders the rows of a weight from i, f, o, g to i, f, g, o."""
    i_and_f, o, g = weight.tensor_split([len(weight) // 2, 3 * len(weight) // 4])
    return torch.cat([i_and_f, g, o])


def plane(x: Tensor) -> Tensor:
    """A grid or a kernel in two dimensions; a one-dimensional one becomes one row."""
    return x.unsqueeze(2) if x.dim() == 3 else x


def innermost(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def padding(kernel: Tensor) -> list[int]:
    return [side // 2 for side in kernel.shape[2:]]


def conv(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, kernel, bias, padding=padding(kernel))


def rows_of(grid: Tensor) -> Tensor:
    """A grid `[N, n, ...]` as rows `[N cells, n]`."""
    return grid.movedim(1, -1).reshape(-1, grid.shape[1])


def joined(grids: Sequence[Tensor]) -> Tensor:
    """The rows of all grids of a layer, `[R, n]`."""
    rows = [rows_of(grid) for grid in grids]
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def chunks(tensors: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    return [list(tensors[begin : begin + size]) for begin in range(0, len(tensors), size)]
