"""The fast form of the dynamic memory network: all steps together, and an attention GRU with a custom backward.

Symbols as in `episode.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.contract import FastForm, MemoryStep, State, Unrolled
from policies.memories.shared import fused_cells

sigmoid_backward = torch.ops.aten.sigmoid_backward.default
tanh_backward = torch.ops.aten.tanh_backward.default


class AttentionGRU(torch.autograd.Function):
    """`attention_gru` with a custom backward: fewer operations, and 5 d stored numbers per fact read.

    tests/policies/memories/test_dmn.py compares the two, forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, products: Tensor, gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        facts, steps, batch = gates.shape
        d, rows = weight.shape[1], steps * batch
        hidden = products.new_empty(facts + 1, rows, d)
        hidden[0] = 0
        recurrent = products.new_empty(facts, rows, 3 * d)  # later r, z, U_n h
        candidates = products.new_empty(facts, rows, d)
        weight_t = weight.t()
        views = zip(
            recurrent, recurrent[:, :, : 2 * d], *torch.split(recurrent, d, 2), candidates, hidden, strict=False
        )
        for j, (sums, r_and_z, r, z, u_n, n, h) in enumerate(views):
            x_part = products[j : j + steps].reshape(rows, 3 * d)
            torch.addmm(bias, h, weight_t, out=sums)
            r_and_z.add_(x_part[:, : 2 * d]).sigmoid_()
            torch.addcmul(x_part[:, 2 * d :], r, u_n, out=n).tanh_()
            torch.lerp(h, n, (1 - z) * gates[j].view(rows, 1), out=hidden[j + 1])
        ctx.save_for_backward(gates, weight, hidden, recurrent, candidates)
        ctx.history = len(products)
        return hidden[-1].view(steps, batch, d).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_episode: Tensor) -> tuple[Tensor, ...]:
        gates, weight, hidden, recurrent, candidates = ctx.saved_tensors
        facts, steps, batch = gates.shape
        d, rows = weight.shape[1], steps * batch
        d_products = weight.new_zeros(ctx.history, batch, 3 * d)
        d_gates = torch.empty_like(gates)
        d_recurrent = torch.empty_like(recurrent)
        d_x_part = weight.new_empty(rows, 3 * d)
        d_h = d_episode.reshape(rows, d)
        for j in reversed(range(facts)):
            r, z, u_n = torch.split(recurrent[j], d, 1)
            h, n, gate = hidden[j], candidates[j], gates[j].view(rows, 1)
            update = 1 - z
            d_update = d_h * (n - h)
            torch.sum(d_update * update, 1, out=d_gates[j].view(rows))
            gated_update = update * gate
            d_n = tanh_backward(d_h * gated_update, n)
            d_x_part[:, :d] = sigmoid_backward(d_n * u_n, r)
            d_x_part[:, d : 2 * d] = sigmoid_backward(-gate * d_update, z)
            d_x_part[:, 2 * d :] = d_n
            d_products[j : j + steps] += d_x_part.view(steps, batch, 3 * d)
            d_recurrent[j] = d_x_part
            d_recurrent[j, :, 2 * d :] *= r
            d_h = torch.addmm(d_h * (1 - gated_update), d_recurrent[j], weight)
        flat = d_recurrent.view(facts * rows, 3 * d)
        return d_products, d_gates, flat.t() @ hidden[:-1].reshape(facts * rows, d), flat.sum(0)


class FusedAttentionGRU(torch.autograd.Function):
    """`AttentionGRU` with a fused GRU cell: three kernel launches per fact, eight in the backward pass."""

    @staticmethod
    def forward(ctx: Any, products: Tensor, gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        facts, steps, batch = gates.shape
        rows, weight_t = steps * batch, weight.t()
        h = products.new_zeros(rows, weight.shape[1])
        hidden, candidates, cells = [h], [], []
        for j, gate in enumerate(gates.view(facts, rows, 1)):
            x_part = products[j : j + steps].reshape(rows, -1)
            candidate, cell = fused_cells.gru(x_part, torch.addmm(bias, h, weight_t), h)
            h = torch.lerp(h, candidate, gate)
            hidden.append(h)
            candidates.append(candidate)
            cells.append(cell)
        ctx.save_for_backward(gates, weight, *hidden[:-1], *candidates, *cells)
        ctx.history = len(products)
        return h.view(steps, batch, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_episode: Tensor) -> tuple[Tensor, ...]:
        gates, weight, *saved = ctx.saved_tensors
        facts, steps, batch = gates.shape
        rows = steps * batch
        hidden, candidates, cells = saved[:facts], saved[facts : 2 * facts], saved[2 * facts :]
        d_products = weight.new_zeros(ctx.history, batch, len(weight))
        d_gates = torch.empty_like(gates)
        d_h, d_recurrent = d_episode.reshape(rows, -1), []
        for j in reversed(range(facts)):
            h, candidate = hidden[j], candidates[j]
            torch.bmm((candidate - h).unsqueeze(1), d_h.unsqueeze(2), out=d_gates[j].view(rows, 1, 1))
            d_candidate = d_h * gates[j].view(rows, 1)
            d_x_part, d_gate, d_through = fused_cells.gru_backward(d_candidate, cells[j])
            d_products[j : j + steps] += d_x_part.view(steps, batch, -1)
            d_recurrent.append(d_gate)
            d_h = torch.addmm(d_through.add_(d_h).sub_(d_candidate), d_gate, weight)
        flat = torch.cat(d_recurrent[::-1])
        return d_products, d_gates, flat.t() @ torch.cat(hidden), flat.sum(0)


class FastDMN(FastForm):
    """Runs the input module by its fast form, then answers the questions of all steps together."""

    memory: Any

    @property
    def attend(self) -> Any:
        """The attention GRU: with fused kernels on CUDA."""
        return (FusedAttentionGRU if self.memory.device.type == "cuda" else AttentionGRU).apply

    def step(self, x: Tensor, state: State) -> MemoryStep:
        encoded = self.memory.input.step(x, {"hidden": state["hidden"]})
        return self.memory.answered(encoded, x, state, self.attend)  # type: ignore[no-any-return]

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        encoded = self.memory.input.unroll(xs, starts, {"hidden": state["hidden"]}, resets)
        answered: Unrolled = self.memory.ask(encoded.outputs, encoded.state, xs, starts, state, self.attend)
        return answered
