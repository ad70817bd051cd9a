"""The fast path of `fast_weights.py`: write and read of one step as one autograd function, differentiated by hand.

A step is bound by the memory traffic of the matrices M^l, not by arithmetic. As the update has low rank,

    M_t = M_{t-1} + Aᵀ Z,    so    M_t x = M_{t-1} x + Aᵀ (Z x),        A = -s (z - z')  `[B, H, D_l]`, Z = z^{l-1},

what is read *after* the write can be had from the matrix *before* it: a step reads each M twice and writes it once, and
the backward pass keeps a reference to M_{t-1} and the factors, never an outer product. Vectors are rows, `[B, N, D]`.
The equality with the plain functions, forward and backward, is held by tests/policies/memories/test_mnm.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class LocalStep(torch.autograd.Function):
    """`write_local`, then `activations` of all keys.

    Layer by layer, as the rule is local: the rows of X are the read and write keys on their way through the updated
    memory, and below them the write keys on their way through the old one.
    """

    @staticmethod
    def forward(
        ctx: Any, keys: Tensor, expected: Tensor, steps: Tensor, squash_output: bool, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """See `MNM.write_then_read`; `expected` is `[B, H, ΣD_l]`. Returns the read-outs and the updated weights."""
        heads = expected.shape[1]
        new, old = slice(0, 2 * heads), slice(2 * heads, None)
        x = torch.cat([keys, keys[:, heads:]], 1)
        xs, errors, updated, offset = [x], [], [], 0
        for index, m in enumerate(weights):
            squash = squash_output or index < len(weights) - 1
            y = torch.bmm(x, m.transpose(1, 2))
            z = y[:, old].tanh_() if squash else y[:, old]
            error = z - expected[:, :, offset : offset + m.shape[1]]
            offset += m.shape[1]
            a = error * -steps[:, index, None, None]
            updated.append(torch.baddbmm(m, a.transpose(1, 2), x[:, old]))
            gram = torch.bmm(x[:, new], x[:, old].transpose(1, 2))
            y[:, new] += torch.bmm(gram, a)
            if squash:
                y[:, new].tanh_()
            x = y
            xs.append(x)
            errors.append(error)
        ctx.save_for_backward(steps, *weights, *xs, *errors)
        ctx.squash_output = squash_output
        return (x[:, new].contiguous(), *updated)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_recalled: Tensor, *d_updated: Tensor) -> tuple[Tensor | None, ...]:
        steps, *saved = ctx.saved_tensors
        layers = len(d_updated)
        weights, xs, errors = saved[:layers], saved[layers : 2 * layers + 1], saved[2 * layers + 1 :]
        heads = errors[0].shape[1]
        new, old = slice(0, 2 * heads), slice(2 * heads, None)
        d_x = torch.cat([d_recalled, torch.zeros_like(d_recalled[:, :heads])], 1)
        d_steps = torch.empty_like(steps)
        d_expected: list[Tensor] = []
        d_weights: list[Tensor | None] = []
        for index in reversed(range(layers)):
            m, x, error, d_m = weights[index], xs[index], errors[index], d_updated[index]
            squash = ctx.squash_output or index < layers - 1
            if squash:
                slope = 1 - xs[index + 1].square()
            step = steps[:, index, None, None]
            a = error * -step
            gram = torch.bmm(x[:, new], x[:, old].transpose(1, 2))
            d_y = d_x
            if squash:
                d_y[:, new].mul_(slope[:, new])
            d_gram = torch.bmm(d_y[:, new], a.transpose(1, 2))
            d_a = torch.bmm(x[:, old], d_m.transpose(1, 2)).baddbmm_(gram.transpose(1, 2), d_y[:, new])
            d_steps[:, index] = (error * d_a).sum((1, 2)).neg_()
            d_error = d_a.mul_(-step)
            d_expected.append(-d_error)
            d_y[:, old].add_(d_error)
            if squash:
                d_y[:, old].mul_(slope[:, old])
            d_weights.append(torch.baddbmm(d_m, d_y.transpose(1, 2), x) if ctx.needs_input_grad[4 + index] else None)
            d_x = torch.bmm(d_y, m)
            d_x[:, new] += torch.bmm(d_gram, x[:, old])
            d_x[:, old] += torch.bmm(d_gram.transpose(1, 2), x[:, new]) + torch.bmm(a, d_m)
        d_keys = d_x[:, new]
        d_keys[:, heads:].add_(d_x[:, old])
        return (d_keys, torch.cat(d_expected[::-1], 2), d_steps, None, *d_weights[::-1])


class GradientStep(torch.autograd.Function):
    """`write_gradient`, then `activations` of all keys.

    Three sweeps through the layers: the write keys up through the old memory (z), their errors down (δ), and all keys up
    through the updated memory (y). The backward pass undoes them in reverse.
    """

    @staticmethod
    def forward(
        ctx: Any, keys: Tensor, values: Tensor, steps: Tensor, squash_output: bool, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """See `MNM.write_then_read`. Returns the read-outs and the updated weights."""
        layers, heads = len(weights), values.shape[1]
        squash = [True] * (layers - 1) + [squash_output]
        zs = [keys[:, heads:]]
        for index, m in enumerate(weights):
            z = torch.bmm(zs[-1], m.transpose(1, 2))
            zs.append(z.tanh_() if squash[index] else z)
        delta = zs[-1] - values
        if squash_output:
            delta *= 1 - zs[-1].square()
        deltas, pulled = [delta], []  # δ^L ... δ^1, and δ^l M^l for l = L ... 2
        for index in reversed(range(1, layers)):
            pulled.append(torch.bmm(deltas[-1], weights[index]))
            deltas.append(pulled[-1] * (1 - zs[index].square()))
        deltas.reverse()
        pulled.reverse()
        ys, updated = [keys], []
        for index, m in enumerate(weights):
            a = deltas[index] * -steps[:, index, None, None]
            updated.append(torch.baddbmm(m, a.transpose(1, 2), zs[index]))
            y = torch.bmm(ys[-1], m.transpose(1, 2)).baddbmm_(torch.bmm(ys[-1], zs[index].transpose(1, 2)), a)
            ys.append(y.tanh_() if squash[index] else y)
        ctx.save_for_backward(values, steps, *weights, *zs, *ys, *deltas, *pulled)
        ctx.squash = squash
        return (ys[-1], *updated)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_recalled: Tensor, *d_updated: Tensor) -> tuple[Tensor | None, ...]:
        values, steps, *saved = ctx.saved_tensors
        layers, heads = len(d_updated), values.shape[1]
        ends = [0, layers, 2 * layers + 1, 3 * layers + 2, 4 * layers + 2, 5 * layers + 1]
        weights, zs, ys, deltas, pulled = (saved[i:j] for i, j in zip(ends[:-1], ends[1:], strict=True))
        slopes = [1 - z.square() if squash else None for z, squash in zip(zs[1:], ctx.squash, strict=True)]
        d_steps = torch.empty_like(steps)
        d_zs: list[Tensor] = [torch.empty(0)] * layers
        d_deltas: list[Tensor] = [torch.empty(0)] * layers
        d_qs: list[Tensor] = [torch.empty(0)] * layers

        # all keys, down through the updated memory, and into its factors
        d_y = d_recalled
        for index in reversed(range(layers)):
            m, y, z, d_m = weights[index], ys[index], zs[index], d_updated[index]
            step = steps[:, index, None, None]
            a = deltas[index] * -step
            d_q = d_y * (1 - ys[index + 1].square()) if ctx.squash[index] else d_y
            d_gram = torch.bmm(d_q, a.transpose(1, 2))
            gram = torch.bmm(y, z.transpose(1, 2))
            d_a = torch.bmm(z, d_m.transpose(1, 2)).baddbmm_(gram.transpose(1, 2), d_q)
            d_steps[:, index] = (deltas[index] * d_a).sum((1, 2)).neg_()
            d_deltas[index] = d_a.mul_(-step)
            d_zs[index] = torch.bmm(a, d_m).baddbmm_(d_gram.transpose(1, 2), y)
            d_y = torch.bmm(d_q, m).baddbmm_(d_gram, z)
            d_qs[index] = d_q
        d_keys = d_y

        # errors, back up: δ^{l-1} = (δ^l M^l) ∘ σ'(z^{l-1})
        d_pulled: list[Tensor] = []
        for index in range(1, layers):
            d_zs[index] -= 2 * zs[index] * d_deltas[index - 1] * pulled[index - 1]
            d_pulled.append(d_deltas[index - 1] * slopes[index - 1])
            d_deltas[index].baddbmm_(d_pulled[-1], weights[index].transpose(1, 2))
        d_output = d_deltas[-1]
        if ctx.squash[-1]:
            d_error = d_output * slopes[-1]
            d_output = d_error - 2 * zs[-1] * d_output * (zs[-1] - values)
            d_values = -d_error
        else:
            d_values = -d_output

        # write keys, down through the old memory; each matrix now has its three low-rank terms
        d_weights: list[Tensor | None] = [None] * layers
        d_z = d_output
        for index in reversed(range(layers)):
            m = weights[index]
            d_p = d_z * slopes[index] if ctx.squash[index] else d_z
            if ctx.needs_input_grad[4 + index]:
                left, right = [d_qs[index], d_p], [ys[index], zs[index]]
                if index > 0:
                    left.append(deltas[index])
                    right.append(d_pulled[index - 1])
                d_weights[index] = torch.baddbmm(d_updated[index], torch.cat(left, 1).transpose(1, 2), torch.cat(right, 1))
            d_z = d_zs[index].baddbmm_(d_p, m)
        d_keys[:, heads:] += d_z
        return (d_keys, d_values, d_steps, None, *d_weights)
