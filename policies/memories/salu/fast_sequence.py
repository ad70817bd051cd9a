"""The fast form of SALU over time: a sequence as one autograd function with a custom backward.

Single steps copy the table and store every copy for the backward pass. Here the table is allocated once, with the
carried rows and space for the rows of all steps. Step t reads a sliding window of `capacity` steps, so nothing is
copied. The backward pass needs one table, and the vectors and read weights of every step. Where an episode starts, an
index moves to the first row that may be read; earlier rows stay in the table but are not read.

This form uses torch; `fast_native.py` does the same in C on a CPU.

Vectors are rows. Symbols as in `memory.py`; C is the capacity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.contract import State
from policies.memories.salu.rules import attend, parts

tanh_backward = torch.ops.aten.tanh_backward.default


class Tape:
    """`length` steps of SALU, stored while they run, without gradients.

    Args:
        length: maximum number of steps.
        state: the state before the first step; not modified.
        recurrent: weights from [h ; v^r] to the gates, `[4 d_h, d_h + d_v]`.
        interaction, interaction_bias: W_v and b_v.
    """

    def __init__(
        self, length: int, state: State, recurrent: Tensor, interaction: Tensor, interaction_bias: Tensor
    ) -> None:
        state = {name: value.detach() for name, value in state.items()}
        self.loop_weights = (recurrent.detach(), interaction.detach(), interaction_bias.detach())
        self.hidden, self.cell, self.read_value = state["hidden"], state["cell"], state["read_value"]
        self.capacity, self.heads = state["keys"].shape[1:3]
        self.keys, self.values = (
            torch.cat([table, table.new_empty(len(table), length, *table.shape[2:])], 1)
            for table in (state["keys"], state["values"])
        )
        count = state["count"]
        self.index = torch.arange(self.capacity + length, device=count.device, dtype=count.dtype)
        self.first = self.capacity - count
        """Index of the first row that is read, `[B]`."""
        self.cleared = torch.zeros_like(count)
        """Number of leading rows cleared by the start of an episode, `[B]`."""
        self.expected_steps, self.max_cleared = length, 0
        """`max_cleared`: upper bound of `cleared`, known to the host."""
        self.count = 0
        self.steps: list[tuple[Tensor, ...]] = []
        self.starts: list[Tensor | None] = []

    @property
    def full(self) -> bool:
        return self.count == self.expected_steps

    def step(self, projected: Tensor, starts: Tensor | None) -> None:
        """Runs a step. `projected`: the input's part of the gates, with both biases, `[B, 4 d_h]`."""
        recurrent, interaction, interaction_bias = self.loop_weights
        carried, cell_before, row = torch.cat([self.hidden, self.read_value], 1), self.cell, self.capacity + self.count
        if starts is not None:
            carried, cell_before = (part.masked_fill(starts[:, None], 0.0) for part in (carried, cell_before))
            self.first, self.cleared = (index.masked_fill(starts, float(row)) for index in (self.first, self.cleared))
            self.max_cleared = row
        gates = torch.addmm(projected, carried, recurrent.t())
        i, f, g, o = gates.chunk(4, 1)
        for gate in (i, f, o):
            gate.sigmoid_()
        self.cell = f * cell_before + i * g.tanh_()
        tanh_cell = self.cell.tanh()
        self.hidden = o * tanh_cell

        vectors = torch.addmm(interaction_bias, self.hidden, interaction.t()).tanh_()
        read_keys, write_keys, write_values = parts(vectors, self.heads, self.keys.shape[3])
        self.keys[:, row], self.values[:, row] = write_keys, write_values
        self.count += 1
        keys, values, used = self.window()
        weights = attend(read_keys, keys, used)
        self.read_value = torch.bmm(weights, values.flatten(1, 2)).mean(1)
        self.steps.append((carried, cell_before, gates, tanh_cell, vectors, weights, self.hidden, self.read_value))
        self.starts.append(starts)

    def window(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of the last C steps, and the mask of the steps of this episode, `[B, C]`."""
        span = slice(self.count, self.count + self.capacity)
        return self.keys[:, span], self.values[:, span], self.index[span] >= self.first[:, None]

    def cleared_rows(self) -> Tensor:
        """Mask of the current window's rows that were cleared by the start of an episode, `[B, C, 1, 1]`."""
        return (self.index[self.count : self.count + self.capacity] < self.cleared[:, None])[:, :, None, None]

    def episode_steps(self) -> Tensor:
        """The state's `count`: number of steps of this episode in the table, `[B]`."""
        return (self.capacity + self.count - self.first).clamp(max=self.capacity)

    def state(self) -> State:
        """The state after the last step; its tables are views, unless the window may contain cleared rows."""
        keys, values, _ = self.window()
        if self.count < self.max_cleared:
            keys, values = (table.masked_fill(self.cleared_rows(), 0.0) for table in (keys, values))
        vectors = {"hidden": self.hidden, "cell": self.cell, "read_value": self.read_value}
        return vectors | {"keys": keys, "values": values, "count": self.episode_steps()}


class TableSequence(torch.autograd.Function):
    """The steps of a `Tape`, with a custom backward.

    Inputs: the tape; the input's part of the gates, `[T, B, 4 d_h]`; hidden, cell, read-out, keys and values before the
    first step; the recurrent weights, W_v and b_v.

    Outputs: hidden `[T, B, d_h]` and read-outs `[T, B, d_v]` of each step; cell, keys and values after the last step.
    """

    @staticmethod
    def forward(ctx: Any, tape: Tape, gates_x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        *saved, hidden, read_value = (torch.stack(each) for each in zip(*tape.steps, strict=True))
        used = tape.capacity + tape.count
        state, cleared_rows = tape.state(), tape.cleared_rows()
        ctx.save_for_backward(*tape.loop_weights, tape.keys[:, :used], tape.values[:, :used], cleared_rows, *saved)
        ctx.starts = tape.starts
        return hidden, read_value, state["cell"].clone(), state["keys"].clone(), state["values"].clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_hiddens: Tensor, d_reads: Tensor, d_cell: Tensor, d_keys_last: Tensor, d_values_last: Tensor
    ) -> tuple[Tensor | None, ...]:
        recurrent, interaction, _, keys, values, cleared_rows, *saved = ctx.saved_tensors
        carried, cells, gates, tanh_cells, vectors, weights = saved
        length, d_h, heads, d_k = len(carried), cells.shape[2], keys.shape[2], keys.shape[3]
        capacity, scale = keys.shape[1] - length, d_k**-0.5
        d_keys, d_values = torch.zeros_like(keys), torch.zeros_like(values)
        d_keys[:, length:], d_values[:, length:] = (
            d_table.masked_fill(cleared_rows, 0.0) for d_table in (d_keys_last, d_values_last)
        )
        keys, values, d_key_rows, d_value_rows = (table.flatten(1, 2) for table in (keys, values, d_keys, d_values))
        d_gates, d_vectors, d_before = torch.empty_like(gates), torch.empty_like(vectors), torch.zeros_like(carried[0])
        read_keys_all = parts(vectors, heads, d_k)[0]
        d_parts = parts(d_vectors, heads, d_k)

        for t in reversed(range(length)):
            window = slice((t + 1) * heads, (t + 1 + capacity) * heads)
            # the read: v^r is the mean over heads
            d_read = (d_reads[t] + d_before[:, d_h:]).div_(heads).unsqueeze(1)
            a = weights[t]
            d_a = torch.bmm(d_read, values[:, window].transpose(1, 2))
            d_scores = torch.ops.aten._softmax_backward_data(d_a.expand_as(a), a, 2, a.dtype).mul_(scale)
            d_value_rows[:, window].addcmul_(a.sum(1).unsqueeze(2), d_read)
            d_key_rows[:, window].baddbmm_(d_scores.transpose(1, 2), read_keys_all[t])
            # the interaction vectors; earlier steps do not read the rows of step t
            d_parts[0][t] = torch.bmm(d_scores, keys[:, window])
            d_parts[1][t], d_parts[2][t] = d_keys[:, capacity + t], d_values[:, capacity + t]
            d_vectors[t] = tanh_backward(d_vectors[t], vectors[t])
            # the controller
            d_hidden = torch.addmm(d_hiddens[t] + d_before[:, :d_h], d_vectors[t], interaction)
            i, f, g, o = gates[t].chunk(4, 1)
            d_cell = torch.addcmul(d_cell, d_hidden, o * (1 - tanh_cells[t].square()))
            d_gate = torch.cat([d_cell * g, d_cell * cells[t], d_cell * i, d_hidden * tanh_cells[t]], 1)
            derivatives = torch.cat([i * (1 - i), f * (1 - f), 1 - g.square(), o * (1 - o)], 1)
            torch.mul(d_gate, derivatives, out=d_gates[t])
            d_before = torch.mm(d_gates[t], recurrent)
            d_cell = d_cell * f
            if ctx.starts[t] is not None:
                d_before.masked_fill_(ctx.starts[t][:, None], 0.0)
                d_cell.masked_fill_(ctx.starts[t][:, None], 0.0)

        hiddens = gates[:, :, -d_h:] * tanh_cells
        return (
            None,
            d_gates,
            *(d_before[:, :d_h], d_cell, d_before[:, d_h:]),
            *(d_keys[:, :capacity], d_values[:, :capacity]),
            d_gates.flatten(0, 1).t() @ carried.flatten(0, 1),
            d_vectors.flatten(0, 1).t() @ hiddens.flatten(0, 1),
            d_vectors.sum((0, 1)),
        )
