"""The fast form of the dynamic memory network: all steps at once, and an attention GRU with a custom backward.

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
    """`attention_gru` with a custom backward: fewer operations, storing 5 d numbers per fact read.

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
        up = weight.t()
        views = zip(
            recurrent, recurrent[:, :, : 2 * d], *torch.split(recurrent, d, 2), candidates, hidden, strict=False
        )
        for j, (back, r_and_z, r, z, u_n, n, h) in enumerate(views):
            own = products[j : j + steps].reshape(rows, 3 * d)
            torch.addmm(bias, h, up, out=back)
            r_and_z.add_(own[:, : 2 * d]).sigmoid_()
            torch.addcmul(own[:, 2 * d :], r, u_n, out=n).tanh_()
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
        d_own = weight.new_empty(rows, 3 * d)
        d_h = d_episode.reshape(rows, d)
        for j in reversed(range(facts)):
            r, z, u_n = torch.split(recurrent[j], d, 1)
            h, n, gate = hidden[j], candidates[j], gates[j].view(rows, 1)
            let_in = 1 - z
            d_let_in = d_h * (n - h)
            torch.sum(d_let_in * let_in, 1, out=d_gates[j].view(rows))
            share = let_in * gate
            d_n = tanh_backward(d_h * share, n)
            d_own[:, :d] = sigmoid_backward(d_n * u_n, r)
            d_own[:, d : 2 * d] = sigmoid_backward(-gate * d_let_in, z)
            d_own[:, 2 * d :] = d_n
            d_products[j : j + steps] += d_own.view(steps, batch, 3 * d)
            d_recurrent[j] = d_own
            d_recurrent[j, :, 2 * d :] *= r
            d_h = torch.addmm(d_h * (1 - share), d_recurrent[j], weight)
        flat = d_recurrent.view(facts * rows, 3 * d)
        return d_products, d_gates, flat.t() @ hidden[:-1].reshape(facts * rows, d), flat.sum(0)


class FusedAttentionGRU(torch.autograd.Function):
    """`AttentionGRU` by the fused kernels of a GRU cell: three launches per fact, eight in the backward pass."""

    @staticmethod
    def forward(ctx: Any, products: Tensor, gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        facts, steps, batch = gates.shape
        rows, up = steps * batch, weight.t()
        h = products.new_zeros(rows, weight.shape[1])
        hidden, moved, kept = [h], [], []
        for j, gate in enumerate(gates.view(facts, rows, 1)):
            own = products[j : j + steps].reshape(rows, -1)
            there, of_cell = fused_cells.gru(own, torch.addmm(bias, h, up), h)
            h = torch.lerp(h, there, gate)
            hidden.append(h)
            moved.append(there)
            kept.append(of_cell)
        ctx.save_for_backward(gates, weight, *hidden[:-1], *moved, *kept)
        ctx.history = len(products)
        return h.view(steps, batch, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_episode: Tensor) -> tuple[Tensor, ...]:
        gates, weight, *saved = ctx.saved_tensors
        facts, steps, batch = gates.shape
        rows = steps * batch
        hidden, moved, kept = saved[:facts], saved[facts : 2 * facts], saved[2 * facts :]
        d_products = weight.new_zeros(ctx.history, batch, len(weight))
        d_gates = torch.empty_like(gates)
        d_h, d_recurrent = d_episode.reshape(rows, -1), []
        for j in reversed(range(facts)):
            h, there = hidden[j], moved[j]
            torch.bmm((there - h).unsqueeze(1), d_h.unsqueeze(2), out=d_gates[j].view(rows, 1, 1))
            d_there = d_h * gates[j].view(rows, 1)
            d_own, d_gate, d_through = fused_cells.gru_backward(d_there, kept[j])
            d_products[j : j + steps] += d_own.view(steps, batch, -1)
            d_recurrent.append(d_gate)
            d_h = torch.addmm(d_through.add_(d_h).sub_(d_there), d_gate, weight)
        flat = torch.cat(d_recurrent[::-1])
        return d_products, d_gates, flat.t() @ torch.cat(hidden), flat.sum(0)


class FastDMN(FastForm):
    """Runs the input module by its own fast form, then answers the questions of all steps together."""

    memory: Any

    @property
    def attend(self) -> Any:
        """Uses fused kernels where they exist."""
        return (FusedAttentionGRU if self.memory.device.type == "cuda" else AttentionGRU).apply

    def step(self, x: Tensor, state: State) -> MemoryStep:
        told = self.memory.input.step(x, {"hidden": state["hidden"]})
        return self.memory.answered(told, x, state, self.attend)  # type: ignore[no-any-return]

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int] | None) -> Unrolled:
        told = self.memory.input.unroll(xs, starts, {"hidden": state["hidden"]}, resets)
        asked: Unrolled = self.memory.ask(told.outputs, told.state, xs, starts, state, self.attend)
        return asked
