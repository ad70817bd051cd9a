"""The fast form of MNM-p over time: a whole sequence as one autograd function with a custom backward.

It is faster than single steps for four reasons:

- Products that do not depend on the last read-out (the input's part of the gates, the output layer, the gradients of
  all slow weights) are computed for all steps at once, outside the loop.
- The matrices M^l are updated in place and not stored for the backward pass. It undoes the writes from the last to the
  first, M_{t-1} = M_t + uᵀ z. A step stores only vectors: O(keys and values) instead of O(weights).
- Autograd records one function instead of every step.
- A step launches few kernels on a GPU: operations in which no layer depends on another run once for all layers
  (`Layers`), and the pointwise part of the controller is one kernel (`fused_cells.py`).

This module uses torch's operations; `fast_taped.py` does the same in C on a CPU.

Rounding errors of undone writes add up but are not amplified. After 5,000 steps in single precision were undone, the
matrices differed from the initial ones by 1e-6 of their norm, and gradients differed by 2e-6 from those with stored
states (bounded in tests/policies/memories/test_mnm_sequence.py).

Vectors are rows. Symbols as in `memory.py`; l = 1..L counts memory layers. The conformance suite and
tests/policies/memories/test_mnm.py compare this form with single steps, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.shared import fused_cells

Parts = tuple[Tensor, Tensor, Tensor]
"""The controller's state: hidden, cell `[B, d_h]` and read-out `[B, d_v]`."""
Pair = tuple[Tensor, Tensor]

tanh_backward = torch.ops.aten.tanh_backward.grad_input


class SlowWeights(NamedTuple):
    """The trained parameters inside the loop."""

    recurrent: Tensor
    """`[4 d_h, d_h + d_v]`: hidden state and read-out to the gates, in torch's order i, f, g, o."""
    interaction: Tensor
    """W_v of eq. (1), `[2 H d_k + H d_v + d_k, d_h]`."""
    interaction_bias: Tensor
    rate: Tensor
    """W_β, `[1 or L, d_k]`."""
    rate_bias: Tensor
    feedback: Tensor
    """The BFPF of all layers, `[ΣD_l, d_v]`; of MNM-g `[0, d_v]`."""
    feedback_bias: Tensor


def product(left: Tensor, right: Tensor) -> Tensor:
    """Σ over steps and batch of leftᵀ right: the gradient of a slow weight."""
    return left.flatten(0, -2).t() @ right.flatten(0, -2)


class Layers:
    """Consecutive memory layers of one shape: all layers if keys, values and units have one width, otherwise one layer.

    Operations in which no layer depends on another (writes, gradients of the matrices) are one product for all of them.

    Args:
        at: indices of the n layers.
        offset: index of the first layer's units in ΣD_l.
        m: M^l, `[n, B, D, D']`; modified in place.
        zs: input `[T, n, B, H, D']` and output `[T, n, B, H, D]` of each layer for the write keys at each step.
        ys: as `zs`, for all keys, `[T, n, B, 2 H, ...]`.
        divisor: divisor of the step size.
    """

    def __init__(self, at: slice, offset: int, m: Tensor, zs: Pair, ys: Pair, divisor: float) -> None:
        self.at, self.offset, self.m, self.divisor = at, offset, m, divisor
        (self.z_below, self.z), (self.y_below, self.y) = zs, ys
        self.flat, self.changes = m.flatten(0, 1), torch.empty_like(self.z[0])

    def rates(self, betas: Tensor) -> Tensor:
        """β `[..., B, 1 or L]` of these layers, `[..., n or 1, B, 1, 1]`."""
        rates = betas if betas.shape[-1] == 1 else betas[..., self.at]
        return rates.transpose(-1, -2)[..., None, None]

    def part(self, units: Tensor) -> Tensor:
        """The units of these layers, `[..., n, B, H, D]`, a view of the units of all layers, `[..., B, H, ΣD_l]`."""
        n, size = self.m.shape[0], self.m.shape[2]
        part = units.narrow(-1, self.offset, n * size)
        return part.view(*part.shape[:-1], n, size).movedim(-2, -4)


class Tape:
    """`length` steps of MNM-p's controller and memory, stored while they run, without gradients.

    Args:
        length: maximum number of steps.
        start: hidden, cell `[B, d_h]` and read-out `[B, d_v]` before the first step.
        weights: M^l `[B, D_l, D_{l-1}]` before the first step; not modified.
        slow: the trained parameters.
        heads: H.
        tanh_output: whether the output layer of the memory has a tanh.
        divisors: divisor of the step size of each layer.
    """

    def __init__(
        self,
        length: int,
        start: Parts,
        weights: Sequence[Tensor],
        slow: SlowWeights,
        heads: int,
        tanh_output: bool,
        divisors: Sequence[float],
    ) -> None:
        hidden, cell, read_value = start
        self.slow, self.heads, self.count = slow, heads, 0
        self.has_tanh = [True] * (len(weights) - 1) + [tanh_output]
        self.d_h, self.d_k, self.d_v = hidden.shape[1], weights[0].shape[2], weights[-1].shape[1]
        self.n_keys, self.n_values = 2 * heads * self.d_k, heads * self.d_v

        def allocate(*shape: int) -> Tensor:
            return hidden.new_empty(length, *shape)

        batch = len(hidden)
        self.carried = [torch.cat([hidden, read_value], 1)]
        """Hidden state and read-out, concatenated, before each step."""
        self.cells, self.activations = [cell], list[Tensor]()
        """The controller's cell before each step, and its gates from `fused_cells.lstm`."""
        self.interactions, self.betas = allocate(batch, len(slow.interaction)), allocate(batch, len(slow.rate))
        self.errors = allocate(batch, heads, len(slow.feedback))
        """z - z' of all layers, concatenated, `[T, B, H, ΣD_l]`."""
        sizes = [self.d_k, *(m.shape[1] for m in weights)]
        self.layers: list[Layers] = []
        self.zs: list[Tensor]
        """Activations of the old memory for the write keys, `[T, B, H, D_l]`, l = 0..L."""
        self.ys: list[Tensor]
        """Activations of the updated memory for all keys, `[T, B, 2 H, D_l]`, l = 0..L."""
        if len(set(sizes)) == 1:
            zs, ys = (allocate(len(sizes), batch, rows, self.d_k) for rows in (heads, 2 * heads))
            self.zs, self.ys = list(zs.unbind(1)), list(ys.unbind(1))
            pairs = (zs[:, :-1], zs[:, 1:]), (ys[:, :-1], ys[:, 1:])
            self.layers.append(Layers(slice(0, len(weights)), 0, torch.stack(list(weights)), *pairs, divisors[0]))
        else:
            self.zs, self.ys = ([allocate(batch, rows, size) for size in sizes] for rows in (heads, 2 * heads))
            for index, m in enumerate(weights):
                copy = m.clone(memory_format=torch.contiguous_format).unsqueeze(0)
                at, offset = slice(index, index + 1), sum(sizes[1 : index + 1])
                z_pair, y_pair = (
                    (levels[index].unsqueeze(1), levels[index + 1].unsqueeze(1)) for levels in (self.zs, self.ys)
                )
                self.layers.append(Layers(at, offset, copy, z_pair, y_pair, divisors[index]))
        self.weights = [m for layers in self.layers for m in layers.m]
        """M^l after the last step."""
        self._transposed = [w.t() for w in (slow.recurrent, slow.interaction, slow.rate, slow.feedback)]

    @torch.no_grad()
    def step(self, gates_x: Tensor) -> None:
        """Runs a step. `gates_x`: the input's part of the gates, with both biases, `[B, 4 d_h]`."""
        slow, t, heads = self.slow, self.count, self.heads
        recurrent, interaction, rate, feedback = self._transposed

        # controller: h_t = LSTM(x_t, v^r_{t-1}, h_{t-1})
        h, cell, activations = fused_cells.lstm(gates_x, self.carried[-1] @ recurrent, self.cells[-1])
        self.cells.append(cell)
        self.activations.append(activations)

        # eq. (1)
        vectors = torch.addmm(slow.interaction_bias, h, interaction, out=self.interactions[t]).tanh_()
        keys = vectors[:, : self.n_keys].view(-1, 2 * heads, self.d_k)
        self.ys[0][t] = keys
        self.zs[0][t] = keys[:, heads:]
        beta = torch.addmm(slow.rate_bias, vectors[:, -self.d_k :], rate, out=self.betas[t]).sigmoid_()
        values = vectors[:, self.n_keys : self.n_keys + self.n_values].reshape(-1, self.d_v)
        expected = torch.addmm(slow.feedback_bias, values, feedback).view(len(h), heads, -1)

        recalled = self._write_and_read(t, beta, expected)
        read = recalled[:, 0] if heads == 1 else recalled[:, :heads].mean(1)
        self.carried.append(torch.cat([h, read], 1))
        self.count += 1

    def _write_and_read(self, t: int, beta: Tensor, expected: Tensor) -> Tensor:
        """Writes; returns the output of the updated memory for all keys, `[B, 2 H, d_v]`."""
        # eq. (4): M^l -= β (z^l - z'^l) z^{l-1}ᵀ, with all z from the old memory
        self._forward(t, self.zs)
        for layers in self.layers:
            error = torch.sub(layers.z[t], layers.part(expected), out=layers.part(self.errors[t]))
            changes = torch.mul(error, layers.rates(beta), out=layers.changes).flatten(0, 1)
            layers.flat.baddbmm_(changes.transpose(1, 2), layers.z_below[t].flatten(0, 1), alpha=-1 / layers.divisor)
        # §3.2: read with all keys
        return self._forward(t, self.ys)

    def _forward(self, t: int, levels: Sequence[Tensor]) -> Tensor:
        """The forward pass of the memory: fills levels 1 ... L of step t from level 0."""
        x = levels[0][t]
        for m, outputs, has_tanh in zip(self.weights, levels[1:], self.has_tanh, strict=True):
            x = torch.bmm(x, m.transpose(1, 2), out=outputs[t])
            if has_tanh:
                x.tanh_()
        return x

    def state(self) -> Parts:
        """Hidden, cell and read-out after the last step."""
        carried = self.carried[-1]
        return carried[:, : self.d_h], self.cells[-1], carried[:, self.d_h :]

    def cut(self) -> None:
        """Frees the buffers of steps that did not run."""
        self.interactions, self.betas = self.interactions[: self.count], self.betas[: self.count]
        self.errors = self.errors[: self.count]
        self.zs, self.ys = ([level[: self.count] for level in levels] for levels in (self.zs, self.ys))


class LocalSequence(torch.autograd.Function):
    """The steps of a `Tape`, with a custom backward.

    Inputs: the tape, empty or full; the input's part of the gates with both biases, `[T, B, 4 d_h]`; and the tensors
    that the tape was created from, for their gradients: its start, the fields of `SlowWeights`, M^l. An empty tape runs
    its steps now. A full tape must have run them with these inputs.

    Outputs: hidden and read-out after each step, concatenated, `[T, B, d_h + d_v]`; the updated memory's output for the
    write keys, and the written values v^w, `[T, B, H, d_v]` each; the last cell `[B, d_h]`; the last M^l.
    """

    @staticmethod
    def forward(ctx: Any, tape: Tape, gates_x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        if not tape.count:
            for gates in gates_x:
                tape.step(gates)
        ctx.tape = tape
        values = tape.interactions[:, :, tape.n_keys : tape.n_keys + tape.n_values].view(
            len(tape.interactions), -1, tape.heads, tape.d_v
        )
        recalled = tape.ys[-1][:, :, tape.heads :]
        outputs = (torch.stack(tape.carried[1:]), recalled.clone(), values.clone(), tape.cells[-1].clone())
        return (*outputs, *(m.clone() for m in tape.weights))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_after: Tensor, d_recalled: Tensor, d_values: Tensor, d_cell: Tensor, *d_last: Tensor
    ) -> tuple[Tensor | None, ...]:
        tape, slow = ctx.tape, ctx.tape.slow
        length, heads, d_h, d_k = len(d_after), tape.heads, tape.d_h, tape.d_k
        n_keys, n_both = tape.n_keys, tape.n_keys + tape.n_values
        memory = MemoryBackward(tape, d_recalled, d_last)
        d_vectors = torch.empty_like(tape.interactions)
        d_vectors[:, :, n_keys:n_both] = d_values.flatten(2)
        d_rates = torch.empty_like(tape.betas)
        complements = 1 - tape.betas
        d_gates: list[Tensor] = []
        d_carried, d_cell = d_after[-1], d_cell.contiguous()
        for t in reversed(range(length)):
            vectors, d_vector = tape.interactions[t], d_vectors[t]
            d_keys, d_log_beta, d_error = memory.step(t, d_carried[:, d_h:])
            d_vector[:, :n_keys] = d_keys.flatten(1)

            # interaction vectors, eq. (1); z' enters z - z' with a minus
            d_value = d_error.flatten(0, 1) @ slow.feedback
            d_vector[:, n_keys:n_both].sub_(d_value.view(len(vectors), -1))
            torch.mul(d_log_beta, complements[t], out=d_rates[t])  # β is a sigmoid
            torch.mm(d_rates[t], slow.rate, out=d_vector[:, -d_k:])
            tanh_backward(d_vector, vectors, grad_input=d_vector)

            # controller
            d_hidden = torch.addmm(d_carried[:, :d_h], d_vector, slow.interaction)
            cells = tape.cells[t], tape.cells[t + 1]
            d_gate, d_cell = fused_cells.lstm_backward(d_hidden, d_cell, *cells, tape.activations[t])
            d_gates.append(d_gate)
            factors = d_gate, slow.recurrent
            d_carried = torch.addmm(d_after[t - 1], *factors) if t else torch.mm(*factors)

        d_all_gates, carried = torch.stack(d_gates[::-1]), torch.stack(tape.carried)
        values = tape.interactions[:, :, n_keys:n_both].view(length, -1, heads, tape.d_v)
        d_slow = SlowWeights(
            recurrent=product(d_all_gates, carried[:-1]),
            interaction=product(d_vectors, carried[1:, :, :d_h]),
            interaction_bias=d_vectors.sum((0, 1)),
            rate=product(d_rates, tape.interactions[:, :, -d_k:]),
            rate_bias=d_rates.sum((0, 1)),
            feedback=product(memory.d_errors, values).neg_(),
            feedback_bias=memory.d_errors.sum((0, 1, 2)).neg_(),
        )
        d_weights = (d_m for d_group in memory.d_m for d_m in d_group)
        return (None, d_all_gates, d_carried[:, :d_h], d_cell, d_carried[:, d_h:], *d_slow, *d_weights)


class MemoryBackward:
    """The backward pass of write and read, from the last step of a tape to the first.

    Args:
        tape: the tape with all its steps; not modified.
        d_recalled: gradient of the updated memory's output for the write keys, `[T, B, H, d_v]`.
        d_last: gradients of the last M^l.
    """

    def __init__(self, tape: Tape, d_recalled: Tensor, d_last: Sequence[Tensor]) -> None:
        self.tape, self.heads = tape, tape.heads
        self.m = [layers.m.clone() for layers in tape.layers]
        self.d_m = [torch.stack(list(d_last[layers.at])) for layers in tape.layers]
        self.d_errors = torch.empty_like(tape.errors)
        """Gradients of z - z' of all layers, concatenated; those of z' are their negatives."""
        # M^l -= s e zᵀ with e = z - z': -s, and -s e, of all steps
        self.minus = [layers.rates(tape.betas) / -layers.divisor for layers in tape.layers]
        errors = (layers.part(tape.errors) for layers in tape.layers)
        self.changes = [(error * minus).contiguous() for error, minus in zip(errors, self.minus, strict=True)]
        self.d_y = [torch.empty_like(layers.y[0]) for layers in tape.layers]
        self.d_z = [torch.empty_like(layers.z[0]) for layers in tape.layers]
        self.d_top = torch.cat([torch.zeros_like(d_recalled), d_recalled], 2)

    def step(self, t: int, d_read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The backward pass of step t; undoes its write: `m` becomes M^l_{t-1}.

        Args:
            t: the step.
            d_read: gradient of v^r, `[B, d_v]`.

        Returns:
            The gradients of all keys `[B, 2 H, d_k]`, of log β `[B, 1 or L]`, and of z - z' `[B, H, ΣD_l]`.
        """
        tape, d_errors, d_inputs = self.tape, self.d_errors[t], list[Tensor]()
        d_keys = self.read_backward(t, d_read)
        for index, layers in enumerate(tape.layers):
            m, d_m = self.m[index].flatten(0, 1), self.d_m[index].flatten(0, 1)
            change, below = self.changes[index][t].flatten(0, 1), layers.z_below[t].flatten(0, 1)
            d_change = torch.bmm(below, d_m.transpose(1, 2)).view_as(layers.z[t])
            torch.mul(d_change, self.minus[index][t], out=layers.part(d_errors))
            d_inputs.append(torch.bmm(change, d_m).view_as(layers.z_below[t]))
            m.baddbmm_(change.transpose(1, 2), below, alpha=-1)  # M_{t-1}
        d_keys[:, self.heads :] += self.write_backward(t, d_inputs)
        return d_keys, self.d_log_rates(d_errors, tape.errors[t]), d_errors

    def d_log_rates(self, d_errors: Tensor, errors: Tensor) -> Tensor:
        """The gradient of log β: Σ e ∂/∂e, because β scales the errors e; over all layers, or for each."""
        if self.tape.betas.shape[2] == 1:
            return torch.bmm(d_errors.flatten(1).unsqueeze(1), errors.flatten(1).unsqueeze(2)).squeeze(2)
        products = d_errors * errors
        return torch.cat([layers.part(products).sum((2, 3)) for layers in self.tape.layers]).t()

    def read_backward(self, t: int, d_read: Tensor) -> Tensor:
        """The backward pass of the read, §3.2: returns the gradient of all keys, `[B, 2 H, d_k]`."""
        heads, tape = self.heads, self.tape
        d = self.d_top[t]
        torch.mul(d_read.unsqueeze(1).expand(-1, heads, -1), 1 / heads, out=d[:, :heads])
        d_ys, ms = [d_y for group in self.d_y for d_y in group], [m for group in self.m for m in group]
        for index in reversed(range(len(ms))):
            y, d_y = tape.ys[index + 1][t], d_ys[index]
            d = tanh_backward(d, y, grad_input=d_y) if tape.has_tanh[index] else d_y.copy_(d)
            d = torch.bmm(d, ms[index])
        for layers, d_m, d_y in zip(tape.layers, self.d_m, self.d_y, strict=True):
            d_m.flatten(0, 1).baddbmm_(d_y.flatten(0, 1).transpose(1, 2), layers.y_below[t].flatten(0, 1))
        return d

    def write_backward(self, t: int, d_inputs: list[Tensor]) -> Tensor:
        """The backward pass of eq. (4) through the activations of the old memory.

        Args:
            t: the step.
            d_inputs: gradients of z^{l-1} from the outer products e zᵀ, `[n, B, H, D']` for each of `Tape.layers`.

        Returns:
            The gradient of the write keys, `[B, H, d_k]`.
        """
        tape, d_z_direct = self.tape, list[Tensor]()  # of z^l, l = 1..L, without the path through the next layer
        for index, layers in enumerate(tape.layers):
            d_error = layers.part(self.d_errors[t])
            d_z_direct += (d_error[:-1] + d_inputs[index][1:]) if len(d_error) > 1 else ()
            d_z_direct.append(d_error[-1] + d_inputs[index + 1][0] if index + 1 < len(d_inputs) else d_error[-1])
        d_zs, ms = [d_z for group in self.d_z for d_z in group], [m for group in self.m for m in group]
        d = d_z_direct[-1]
        for index in reversed(range(len(ms))):
            z, d_z = tape.zs[index + 1][t], d_zs[index]
            d = tanh_backward(d, z, grad_input=d_z) if tape.has_tanh[index] else d_z.copy_(d)
            d = torch.baddbmm(d_z_direct[index - 1] if index else d_inputs[0][0], d, ms[index])
        for layers, d_m, d_z in zip(tape.layers, self.d_m, self.d_z, strict=True):
            d_m.flatten(0, 1).baddbmm_(d_z.flatten(0, 1).transpose(1, 2), layers.z_below[t].flatten(0, 1))
        return d
