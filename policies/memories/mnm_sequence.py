"""The fast path of MNM-p over time: a whole sequence as one autograd function, differentiated by hand.

Three things make it faster than stepping:

- what does not wait for the last read-out (the input's part of the gates, the output layer, the gradients of all slow
  weights) is one large product over all steps, outside of the loop;
- the matrices M^l are updated in place, and the backward pass does not keep them: it undoes the writes one by one,
  M_{t-1} = M_t + uᵀ z, from the last. Per step it keeps vectors only: O(keys and values) instead of O(weights);
- nothing is recorded step by step.

Vectors are rows. Symbols as in `mnm.py`; l = 1..L counts memory layers. The equality with the plain unroll, forward and
backward, is held by the conformance suite and by tests/policies/memories/test_mnm.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

tanh_backward = torch.ops.aten.tanh_backward.default


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
    """The BFPF of all layers, `[ΣD_l, d_v]`."""
    feedback_bias: Tensor


class Tape:
    """`length` steps of MNM-p's controller and memory, written down as they are taken; without gradients.

    Args:
        length: room for so many steps.
        start: hidden, cell `[B, d_h]` and read-out `[B, d_v]` before the first step.
        weights: M^l `[B, D_l, D_{l-1}]` before the first step; left as they are.
        slow: the trained parameters.
        heads: H.
        squash_output: whether the output layer of the memory has its tanh.
        divisors: of the step size, `[L]`.
    """

    def __init__(
        self,
        length: int,
        start: tuple[Tensor, Tensor, Tensor],
        weights: list[Tensor],
        slow: SlowWeights,
        heads: int,
        squash_output: bool,
        divisors: Tensor,
    ) -> None:
        hidden, cell, read_value = start
        self.slow, self.heads, self.divisors = slow, heads, divisors
        self.weights = [m.clone() for m in weights]
        self.squash = [True] * (len(weights) - 1) + [squash_output]
        self.d_h, self.d_k, self.d_v = hidden.shape[1], weights[0].shape[2], weights[-1].shape[1]
        self.sizes = [m.shape[1] for m in weights]
        self.n_keys, self.n_values = 2 * heads * self.d_k, heads * self.d_v
        self.count = 0

        def room(*shape: int, steps: int = length) -> Tensor:
            return hidden.new_empty(steps, len(hidden), *shape)

        self.carried = room(self.d_h + self.d_v, steps=length + 1)  # [h_{t-1}; v^r_{t-1}] before each step
        self.carried[0, :, : self.d_h], self.carried[0, :, self.d_h :] = hidden, read_value
        self.cells = room(self.d_h, steps=length + 1)
        self.cells[0] = cell
        self.gates, self.tanh_cells = room(4 * self.d_h), room(self.d_h)
        self.interactions, self.betas = room(len(slow.interaction)), room(len(slow.rate))
        self.zs = [room(heads, size) for size in self.sizes]  # write keys on their way up the old memory
        self.errors = [room(heads, size) for size in self.sizes]  # z - z'
        self.ys = [room(2 * heads, size) for size in self.sizes]  # all keys on their way up the updated memory

    @torch.no_grad()
    def step(self, gates_x: Tensor) -> None:
        """Take a step. `gates_x`: the input's part of the gates, with both biases, `[B, 4 d_h]`."""
        t, d_h, d_k, slow, weights = self.count, self.d_h, self.d_k, self.slow, self.weights
        batch = len(gates_x)

        # controller: h_t = LSTM(x_t, v^r_{t-1}, h_{t-1})
        gate = torch.addmm(gates_x, self.carried[t], slow.recurrent.t(), out=self.gates[t])
        gate[:, : 2 * d_h].sigmoid_()
        gate[:, 2 * d_h : 3 * d_h].tanh_()
        gate[:, 3 * d_h :].sigmoid_()
        i, f, g, o = gate.view(batch, 4, d_h).unbind(1)
        cell = torch.mul(f, self.cells[t], out=self.cells[t + 1]).addcmul_(i, g)
        h = self.carried[t + 1, :, :d_h]
        torch.mul(o, torch.tanh(cell, out=self.tanh_cells[t]), out=h)

        # eq. (1)
        vectors = torch.addmm(slow.interaction_bias, h, slow.interaction.t(), out=self.interactions[t]).tanh_()
        keys, values = self.keys(t), self.values(t)
        torch.addmm(slow.rate_bias, vectors[:, -d_k:], slow.rate.t(), out=self.betas[t]).sigmoid_()
        steps = self.betas[t] / self.divisors

        # eq. (4): M^l -= β (z^l - z'^l) z^{l-1}ᵀ, with every z of the old memory
        expected = torch.addmm(slow.feedback_bias, values.flatten(0, 1), slow.feedback.t())
        expected = expected.view(batch, self.heads, -1)
        z, offset = keys[:, self.heads :], 0
        for index, m in enumerate(weights):
            below, z, error = z, self.zs[index][t], self.errors[index][t]
            torch.bmm(below, m.transpose(1, 2), out=z)
            if self.squash[index]:
                z.tanh_()
            torch.sub(z, expected[:, :, offset : offset + self.sizes[index]], out=error)
            offset += self.sizes[index]
            u = error * steps[:, index, None, None]
            m.baddbmm_(u.transpose(1, 2), below, alpha=-1)

        # §3.2: read with all keys, and average the heads
        y = keys
        for index, m in enumerate(weights):
            y = torch.bmm(y, m.transpose(1, 2), out=self.ys[index][t])
            if self.squash[index]:
                y.tanh_()
        torch.mean(y[:, : self.heads], 1, out=self.carried[t + 1, :, d_h:])
        self.count += 1

    def keys(self, t: int) -> Tensor:
        """H read keys, then H write keys, of step `t`: `[B, 2H, d_k]`."""
        return self.interactions[t, :, : self.n_keys].view(-1, 2 * self.heads, self.d_k)

    def values(self, t: int) -> Tensor:
        """v^w of step `t`: `[B, H, d_v]`."""
        return self.interactions[t, :, self.n_keys : self.n_keys + self.n_values].view(-1, self.heads, self.d_v)

    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden, cell and read-out after the last step."""
        carried = self.carried[self.count]
        return carried[:, : self.d_h], self.cells[self.count], carried[:, self.d_h :]

    def cut(self) -> None:
        """Give back the room for steps that were not taken."""
        self.carried, self.cells = self.carried[: self.count + 1], self.cells[: self.count + 1]
        for name in ("gates", "tanh_cells", "interactions", "betas"):
            setattr(self, name, getattr(self, name)[: self.count])
        for name in ("zs", "errors", "ys"):
            setattr(self, name, [layer[: self.count] for layer in getattr(self, name)])


class LocalSequence(torch.autograd.Function):
    """The steps of a `Tape` and their derivative.

    Inputs: the tape, blank or full; the input's part of the gates with both biases, `[T, B, 4 d_h]`; what the tape was
    made of, for their gradients: its start, the fields of `SlowWeights`, M^l. A blank tape takes its steps now. A full
    one must have taken them with these very inputs.

    Outputs: hidden `[T, B, d_h]`, read-outs v^r `[T, B, d_v]`, what the updated memory recalls of the write keys and
    the values v^w it was told, `[T, B, H, d_v]` each, the last cell `[B, d_h]`, the last M^l.
    """

    @staticmethod
    def forward(ctx: Any, tape: Tape, gates_x: Tensor, *made_of: Tensor) -> tuple[Tensor, ...]:
        if not tape.count:
            for gates in gates_x:
                tape.step(gates)
        ctx.tape = tape  # neither input nor output, so no graph runs through it
        start, end = tape.n_keys, tape.n_keys + tape.n_values
        told = tape.interactions[:, :, start:end].view(*gates_x.shape[:2], tape.heads, tape.d_v)
        outputs = (
            tape.carried[1:, :, : tape.d_h],
            tape.carried[1:, :, tape.d_h :],
            tape.ys[-1][:, :, tape.heads :],
            told,
        )
        return (*(output.clone() for output in outputs), tape.cells[-1].clone(), *(m.clone() for m in tape.weights))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        d_hiddens: Tensor,
        d_reads: Tensor,
        d_recalled: Tensor,
        d_told: Tensor,
        d_cell: Tensor,
        *d_last: Tensor,
    ) -> tuple[Tensor | None, ...]:
        tape: Tape = ctx.tape
        slow, weights, divisors = tape.slow, [m.clone() for m in tape.weights], tape.divisors
        carried, cells, gates, tanh_cells = tape.carried, tape.cells, tape.gates, tape.tanh_cells
        interactions, betas, zs, errors, ys = tape.interactions, tape.betas, tape.zs, tape.errors, tape.ys
        heads, squash, layers = tape.heads, tape.squash, len(weights)
        length, batch, d_h = tanh_cells.shape
        d_k, d_v, sizes, n_keys, n_values = tape.d_k, tape.d_v, tape.sizes, tape.n_keys, tape.n_values

        # factors of the gates' gradients, for all steps at once: of i, f, g with that of the cell, of o with that of h
        i, f, g, o = gates.view(length, batch, 4, d_h).unbind(2)
        local = torch.stack([g * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - g * g), tanh_cells * o * (1 - o)], 2)
        through_tanh = o * (1 - tanh_cells * tanh_cells)
        d_gates = torch.empty_like(gates)
        d_interactions = torch.empty_like(interactions)
        d_expected = gates.new_empty(length, batch, heads, sum(sizes))
        d_rates = torch.empty_like(betas)
        beta_slopes = betas * (1 - betas)
        d_steps = gates.new_empty(batch, layers)
        d_weights = [m.clone() for m in d_last]
        d_cell, d_carried = d_cell.clone(), gates.new_zeros(batch, d_h + d_v)
        d_y_top = gates.new_empty(batch, 2 * heads, d_v)

        for t in reversed(range(length)):
            keys = tape.keys(t)

            # the read, §3.2
            d_read = d_carried[:, d_h:] + d_reads[t]
            d_y_top[:, :heads] = d_read.div_(heads).unsqueeze(1)
            d_y_top[:, heads:] = d_recalled[t]
            d_y = d_y_top
            for index in reversed(range(layers)):
                if squash[index]:
                    d_y = tanh_backward(d_y, ys[index][t])
                below = ys[index - 1][t] if index else keys
                d_weights[index].baddbmm_(d_y.transpose(1, 2), below)
                d_y = torch.bmm(d_y, weights[index])

            # the write, eq. (4), layer by layer from the top; M^l becomes that of step t-1
            steps = betas[t] / divisors
            d_z: Tensor | None = None
            offset = sum(sizes)
            for index in reversed(range(layers)):
                below = zs[index - 1][t] if index else keys[:, heads:]
                step, error = steps[:, index, None, None], errors[index][t]
                u = error * step
                d_u = torch.bmm(below, d_weights[index].transpose(1, 2)).neg_()
                torch.sum(d_u * error, (1, 2), out=d_steps[:, index])
                d_error = d_u.mul_(step)
                offset -= sizes[index]
                torch.neg(d_error, out=d_expected[t, :, :, offset : offset + sizes[index]])
                d_below = torch.bmm(u, d_weights[index])
                weights[index].baddbmm_(u.transpose(1, 2), below)
                d_z = d_error if d_z is None else d_error.add_(d_z)
                if squash[index]:
                    d_z = tanh_backward(d_z, zs[index][t])
                d_weights[index].baddbmm_(d_z.transpose(1, 2), below)
                d_z = torch.bmm(d_z, weights[index]).sub_(d_below)
            assert d_z is not None

            # interaction vectors, eq. (1)
            d_vectors = d_interactions[t]
            d_keys = d_vectors[:, :n_keys].view(batch, 2 * heads, d_k)
            d_keys.copy_(d_y)
            d_keys[:, heads:] += d_z
            d_values = d_vectors[:, n_keys : n_keys + n_values].view(batch, heads, d_v)
            torch.add(d_told[t], d_expected[t] @ slow.feedback, out=d_values)
            d_beta = d_steps / divisors
            if betas.shape[2] < layers:  # one rate serves all layers
                d_beta = d_beta.sum(1, keepdim=True)
            torch.mul(d_beta, beta_slopes[t], out=d_rates[t])
            torch.mm(d_rates[t], slow.rate, out=d_vectors[:, -d_k:])
            d_vectors.copy_(tanh_backward(d_vectors, interactions[t]))

            # controller
            d_h_t = torch.addmm(d_hiddens[t], d_vectors, slow.interaction)
            d_h_t += d_carried[:, :d_h]
            d_cell.addcmul_(d_h_t, through_tanh[t])
            d_gate = d_gates[t].view(batch, 4, d_h)
            torch.mul(local[t, :, :3], d_cell.unsqueeze(1), out=d_gate[:, :3])
            torch.mul(local[t, :, 3], d_h_t, out=d_gate[:, 3])
            d_cell.mul_(f[t])
            d_carried = torch.mm(d_gates[t], slow.recurrent)

        def product(left: Tensor, right: Tensor) -> Tensor:
            """Σ over steps and batch of leftᵀ right: the gradient of a slow weight."""
            return left.flatten(0, -2).t() @ right.flatten(0, -2)

        values = interactions[:, :, n_keys : n_keys + n_values].view(length, batch, heads, d_v)
        d_slow = SlowWeights(
            recurrent=product(d_gates, carried[:-1]),
            interaction=product(d_interactions, carried[1:, :, :d_h]),
            interaction_bias=d_interactions.sum((0, 1)),
            rate=product(d_rates, interactions[:, :, -d_k:]),
            rate_bias=d_rates.sum((0, 1)),
            feedback=product(d_expected, values),
            feedback_bias=d_expected.sum((0, 1, 2)),
        )
        d_before = (d_carried[:, :d_h], d_cell, d_carried[:, d_h:])
        return (None, d_gates, *d_before, *d_slow, *d_weights)
