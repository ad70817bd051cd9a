"""The fast form of MNM-p over time: a whole sequence as one autograd function with a custom backward.

Three things make it faster than stepping:

- what does not wait for the last read-out (the input's part of the gates, the output layer, the gradients of all slow
  weights) is one large product over all steps, outside of the loop;
- the matrices M^l are updated in place, and the backward pass does not keep them: it undoes the writes one by one,
  M_{t-1} = M_t + uᵀ z, from the last. Per step it keeps vectors only: O(keys and values) instead of O(weights);
- nothing is recorded step by step.

This is the form of torch's operations; `fast_taped.py` does the same on a CPU in C.

Undoing a write takes away what was added: what rounding leaves adds up, but nothing magnifies it. After 5,000 steps in
single precision and back, the matrices were found 1e-6 of their size from where they began, and gradients 2e-6 from
those of states recomputed from stored ones (tests/policies/memories/test_mnm_sequence.py bounds it).

Vectors are rows. Symbols as in `memory.py`; l = 1..L counts memory layers. The equality with the plain unroll, forward
and backward, is held by the conformance suite and by tests/policies/memories/test_mnm.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Parts = tuple[Tensor, Tensor, Tensor]
"""The controller's state: hidden, cell `[B, d_h]` and read-out `[B, d_v]`."""

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


def by_step(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The views `tensor[t]` of several tensors, for each `t`."""
    return list(zip(*(tensor.unbind(0) for tensor in tensors), strict=True))


def product(left: Tensor, right: Tensor) -> Tensor:
    """Σ over steps and batch of leftᵀ right: the gradient of a slow weight."""
    return left.flatten(0, -2).t() @ right.flatten(0, -2)


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
        start: Parts,
        weights: list[Tensor],
        slow: SlowWeights,
        heads: int,
        squash_output: bool,
        divisors: Tensor,
    ) -> None:
        hidden, cell, read_value = start
        self.slow, self.heads, self.divisors = slow, heads, divisors
        self.weights = [m.clone(memory_format=torch.contiguous_format) for m in weights]
        self.squash = [True] * (len(weights) - 1) + [squash_output]
        self.d_h, self.d_k, self.d_v = hidden.shape[1], weights[0].shape[2], weights[-1].shape[1]
        self.sizes = [m.shape[1] for m in weights]
        self.n_keys, self.n_values = 2 * heads * self.d_k, heads * self.d_v
        self.count = 0

        def room(*shape: int, steps: int = length) -> Tensor:
            return hidden.new_empty(steps, len(hidden), *shape)

        d_h, n_keys, n_both = self.d_h, self.n_keys, self.n_keys + self.n_values
        self.carried = room(d_h + self.d_v, steps=length + 1)  # [h_{t-1}; v^r_{t-1}] before each step
        self.carried[0, :, :d_h], self.carried[0, :, d_h:] = hidden, read_value
        self.cells = room(d_h, steps=length + 1)
        self.cells[0] = cell
        self.gates, self.tanh_cells = room(4 * d_h), room(d_h)
        self.interactions, self.betas = room(len(slow.interaction)), room(len(slow.rate))
        self.keys = self.interactions[:, :, :n_keys].view(length, -1, 2 * heads, self.d_k)  # H to read, H to write
        self.values = self.interactions[:, :, n_keys:n_both].view(length, -1, heads, self.d_v)
        self.zs = [room(heads, size) for size in self.sizes]  # write keys on their way up the old memory
        self.errors = [room(heads, size) for size in self.sizes]  # z - z'
        self.ys = [room(2 * heads, size) for size in self.sizes]  # all keys on their way up the updated memory
        # The views each step works through, made at once: step by step they would cost as much as the arithmetic.
        self._views = by_step(
            self.gates,
            self.gates[:, :, : 2 * d_h],
            *self.gates.view(length, -1, 4, d_h).unbind(2),
            self.carried[:-1],
            self.carried[1:, :, :d_h],
            self.carried[1:, :, d_h:],
            self.cells[:-1],
            self.cells[1:],
            self.tanh_cells,
            self.interactions,
            self.interactions[:, :, -self.d_k :],
            self.keys,
            self.keys[:, :, heads:],
            self.values,
            self.betas,
            self.ys[-1][:, :, :heads],
        )
        self._layer_views = [by_step(*layer) for layer in zip(self.zs, self.errors, self.ys, strict=True)]
        self._up = [m.transpose(1, 2) for m in self.weights]
        self._slow_up = [w.t() for w in (slow.recurrent, slow.interaction, slow.rate, slow.feedback)]

    @torch.no_grad()
    def step(self, gates_x: Tensor) -> None:
        """Take a step. `gates_x`: the input's part of the gates, with both biases, `[B, 4 d_h]`."""
        slow, t = self.slow, self.count
        recurrent, interaction, rate, feedback = self._slow_up
        gate, input_and_forget, i, f, g, o, before, h, read, cell_before, cell, tanh_cell, *rest = self._views[t]
        vectors, rate_in, keys, write_keys, values, beta, recalled = rest

        # controller: h_t = LSTM(x_t, v^r_{t-1}, h_{t-1})
        torch.addmm(gates_x, before, recurrent, out=gate)
        input_and_forget.sigmoid_()
        g.tanh_()
        o.sigmoid_()
        torch.mul(f, cell_before, out=cell).addcmul_(i, g)
        torch.mul(o, torch.tanh(cell, out=tanh_cell), out=h)

        # eq. (1)
        torch.addmm(slow.interaction_bias, h, interaction, out=vectors).tanh_()
        torch.addmm(slow.rate_bias, rate_in, rate, out=beta).sigmoid_()
        steps = beta / self.divisors
        expected = torch.addmm(slow.feedback_bias, values.flatten(0, 1), feedback).view(*values.shape[:2], -1)
        self._write_and_read(keys, write_keys, steps, expected)
        torch.mean(recalled, 1, out=read)
        self.count += 1

    def _write_and_read(self, keys: Tensor, write_keys: Tensor, steps: Tensor, expected: Tensor) -> None:
        # eq. (4): M^l -= β (z^l - z'^l) z^{l-1}ᵀ, with every z of the old memory
        t, rates, layers = self.count, steps[:, :, None, None].unbind(1), torch.split(expected, self.sizes, 2)
        below = write_keys
        for m, up, squash, step, z_, views in zip(
            self.weights, self._up, self.squash, rates, layers, self._layer_views, strict=True
        ):
            z, error, _ = views[t]
            torch.bmm(below, up, out=z)
            if squash:
                z.tanh_()
            torch.sub(z, z_, out=error)
            m.baddbmm_((error * step).transpose(1, 2), below, alpha=-1)
            below = z

        # §3.2: read with all keys, and average the heads
        y = keys
        for up, squash, views in zip(self._up, self.squash, self._layer_views, strict=True):
            y = torch.bmm(y, up, out=views[t][2])
            if squash:
                y.tanh_()

    def state(self) -> Parts:
        """Hidden, cell and read-out after the last step."""
        carried = self.carried[self.count]
        return carried[:, : self.d_h], self.cells[self.count], carried[:, self.d_h :]

    def cut(self) -> None:
        """Give back the room for steps that were not taken."""
        self.carried, self.cells = self.carried[: self.count + 1], self.cells[: self.count + 1]
        for name in ("gates", "tanh_cells", "interactions", "betas", "keys", "values"):
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
        layers = (*tape.zs, *tape.errors, *tape.ys, *tape.weights)
        steps = (tape.carried, tape.cells, tape.gates, tape.tanh_cells, tape.interactions, tape.betas)
        ctx.save_for_backward(tape.divisors, *tape.slow, *steps, *layers)
        ctx.heads, ctx.squash = tape.heads, tape.squash
        outputs = (
            tape.carried[1:, :, : tape.d_h],
            tape.carried[1:, :, tape.d_h :],
            tape.ys[-1][:, :, tape.heads :],
            tape.values,
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
        divisors, *saved = ctx.saved_tensors
        slow, saved = SlowWeights(*saved[:7]), saved[7:]
        (carried, cells, gates, tanh_cells, interactions, betas), saved = saved[:6], saved[6:]
        heads, squash, layers = ctx.heads, ctx.squash, len(d_last)
        zs, errors, ys, weights = (saved[layers * part : layers * (part + 1)] for part in range(4))
        weights = [m.clone() for m in weights]
        length, batch, d_h = tanh_cells.shape
        d_k, d_v, sizes = weights[0].shape[2], weights[-1].shape[1], [m.shape[1] for m in weights]
        n_keys, n_values = 2 * heads * d_k, heads * d_v
        keys_all = interactions[:, :, :n_keys].view(length, batch, 2 * heads, d_k)
        values_all = interactions[:, :, n_keys : n_keys + n_values].view(length, batch, heads, d_v)

        # factors of the gates' gradients, for all steps at once: of i, f, g with that of the cell, of o with that of h
        i, f, g, o = gates.view(length, batch, 4, d_h).unbind(2)
        local = torch.stack([g * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - g * g), tanh_cells * o * (1 - o)], 2)
        through_tanh = o * (1 - tanh_cells * tanh_cells)
        d_gates = torch.empty_like(gates)
        d_interactions = torch.empty_like(interactions)
        d_expected = gates.new_empty(length, batch, heads, sum(sizes))
        d_rates = torch.empty_like(betas)
        d_steps = gates.new_empty(batch, layers)
        d_weights = [m.clone(memory_format=torch.contiguous_format) for m in d_last]
        d_weights_up = [m.transpose(1, 2) for m in d_weights]
        d_cell, d_carried = d_cell.clone(), gates.new_zeros(batch, d_h + d_v)
        d_y_top = gates.new_empty(batch, 2 * heads, d_v)
        d_keys_all = d_interactions[:, :, :n_keys].view(length, batch, 2 * heads, d_k)
        d_gates_of = d_gates.view(length, batch, 4, d_h)
        views = by_step(
            keys_all,
            keys_all[:, :, heads:],
            d_reads,
            d_recalled,
            (betas / divisors).expand(-1, -1, layers)[..., None, None],
            betas * (1 - betas),
            d_interactions,
            d_keys_all,
            d_keys_all[:, :, heads:],
            d_interactions[:, :, n_keys : n_keys + n_values].view(length, batch, heads, d_v),
            d_interactions[:, :, -d_k:],
            interactions,
            d_told,
            d_expected,
            d_rates,
            d_hiddens,
            through_tanh,
            local[:, :, :3],
            local[:, :, 3],
            d_gates,
            d_gates_of[:, :, :3],
            d_gates_of[:, :, 3],
            f,
        )
        d_layers = by_step(*torch.split(d_expected, sizes, 3))
        layer_views = [by_step(*layer) for layer in zip(zs, errors, ys, strict=True)]

        def through_memory(t: int, keys: Tensor, write_keys: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
            """The derivatives of all keys and of what was written, and one step back."""
            # the read, §3.2
            d_y = d_y_top
            for index in reversed(range(layers)):
                if squash[index]:
                    d_y = tanh_backward(d_y, layer_views[index][t][2])
                below = layer_views[index - 1][t][2] if index else keys
                d_weights[index].baddbmm_(d_y.transpose(1, 2), below)
                d_y = torch.bmm(d_y, weights[index])

            # the write, eq. (4), layer by layer from the top; M^l becomes that of step t-1
            d_z: Tensor | None = None
            for index in reversed(range(layers)):
                z, error, _ = layer_views[index][t]
                below = layer_views[index - 1][t][0] if index else write_keys
                step = steps[:, index]
                u = error * step
                d_u = torch.bmm(below, d_weights_up[index]).neg_()
                torch.sum(d_u * error, (1, 2), out=d_steps[:, index])
                d_error = d_u.mul_(step)
                torch.neg(d_error, out=d_layers[t][index])
                d_below = torch.bmm(u, d_weights[index])
                weights[index].baddbmm_(u.transpose(1, 2), below)
                d_z = d_error if d_z is None else d_error.add_(d_z)
                if squash[index]:
                    d_z = tanh_backward(d_z, z)
                d_weights[index].baddbmm_(d_z.transpose(1, 2), below)
                d_z = torch.bmm(d_z, weights[index]).sub_(d_below)
            assert d_z is not None
            return d_y, d_z

        for t in reversed(range(length)):
            keys, write_keys, d_read, d_recall, steps, beta_slope, d_vectors, *rest = views[t]
            d_keys, d_write_keys, d_values, d_rate_in, vectors, d_value, d_expect, d_rate, d_hidden, *rest = rest
            tanh_slope, local_ifg, local_o, d_gate, d_gate_ifg, d_gate_o, forget = rest

            d_y_top[:, :heads] = (d_carried[:, d_h:] + d_read).div_(heads).unsqueeze(1)
            d_y_top[:, heads:] = d_recall
            d_y, d_z = through_memory(t, keys, write_keys, steps)
            d_keys.copy_(d_y)
            d_write_keys += d_z

            # interaction vectors, eq. (1)
            torch.add(d_value, d_expect @ slow.feedback, out=d_values)
            d_beta = d_steps / divisors
            if betas.shape[2] < layers:  # one rate serves all layers
                d_beta = d_beta.sum(1, keepdim=True)
            torch.mul(d_beta, beta_slope, out=d_rate)
            torch.mm(d_rate, slow.rate, out=d_rate_in)
            d_vectors.copy_(tanh_backward(d_vectors, vectors))

            # controller
            d_h_t = torch.addmm(d_hidden, d_vectors, slow.interaction)
            d_h_t += d_carried[:, :d_h]
            d_cell.addcmul_(d_h_t, tanh_slope)
            torch.mul(local_ifg, d_cell.unsqueeze(1), out=d_gate_ifg)
            torch.mul(local_o, d_h_t, out=d_gate_o)
            d_cell.mul_(forget)
            d_carried = torch.mm(d_gate, slow.recurrent)

        d_slow = SlowWeights(
            recurrent=product(d_gates, carried[:-1]),
            interaction=product(d_interactions, carried[1:, :, :d_h]),
            interaction_bias=d_interactions.sum((0, 1)),
            rate=product(d_rates, interactions[:, :, -d_k:]),
            rate_bias=d_rates.sum((0, 1)),
            feedback=product(d_expected, values_all),
            feedback_bias=d_expected.sum((0, 1, 2)),
        )
        d_before = (d_carried[:, :d_h], d_cell, d_carried[:, d_h:])
        return (None, d_gates, *d_before, *d_slow, *d_weights)
