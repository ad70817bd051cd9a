"""The fast form of `rules.py`: write and read of one step as one autograd function with a custom backward.

A step spends as much time on reading the matrices M^l from memory as on arithmetic. The update has low rank:

    M_t = M_{t-1} + Aᵀ Z,    so    M_t x = M_{t-1} x + Aᵀ (Z x),        A = -s (z - z') `[B, H, D_l]`, Z = z^{l-1},

so a read *after* the write can be computed from the matrix *before* it. A step reads each M few times and writes it
once. For the backward pass it stores a reference to M_{t-1} and the factors, but no outer product. Vectors are rows,
`[B, N, D]`. tests/policies/memories/test_mnm.py compares both functions with the equations, forward and backward.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class LocalStep(torch.autograd.Function):
    """`write_local`, then `activations` of all keys.

    The rule is local, so one pass through the layers suffices. The rows of x are the activations of all keys in the
    updated memory, then those of the write keys in the old memory.
    """

    @staticmethod
    def forward(
        ctx: Any, keys: Tensor, expected: Tensor, steps: Tensor, tanh_output: bool, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """As `MNM.write_then_read`; `expected`: z' of all layers, concatenated, `[B, H, ΣD_l]`."""
        heads, reads = expected.shape[1], keys.shape[1]
        x = torch.cat([keys, keys[:, heads : 2 * heads]], 1)
        xs, errors, updated = [x], [], []
        targets = torch.split(expected, [m.shape[1] for m in weights], 2)
        for index, m in enumerate(weights):
            has_tanh = tanh_output or index < len(weights) - 1
            x_new, x_old = x[:, :reads], x[:, reads:]
            x = torch.bmm(x, m.transpose(1, 2))
            y_new, y_old = x[:, :reads], x[:, reads:]
            if has_tanh:
                y_old.tanh_()
            error = y_old - targets[index]
            a = error * -steps[:, index, None, None]
            updated.append(torch.baddbmm(m, a.transpose(1, 2), x_old))
            y_new += torch.bmm(torch.bmm(x_new, x_old.transpose(1, 2)), a)
            if has_tanh:
                y_new.tanh_()
            xs.append(x)
            errors.append(error)
        ctx.save_for_backward(steps, *weights, *xs, *errors)
        ctx.tanh_output = tanh_output
        return (x[:, :reads].contiguous(), *updated)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_recalled: Tensor, *d_updated: Tensor) -> tuple[Tensor | None, ...]:
        steps, *saved = ctx.saved_tensors
        layers = len(d_updated)
        weights, xs, errors = saved[:layers], saved[layers : 2 * layers + 1], saved[2 * layers + 1 :]
        heads, reads = errors[0].shape[1], d_recalled.shape[1]
        d_x = torch.cat([d_recalled, torch.zeros_like(d_recalled[:, :heads])], 1)
        d_steps = torch.empty_like(steps)
        d_targets: list[Tensor] = []
        d_weights: list[Tensor | None] = []
        for index in reversed(range(layers)):
            m, x, error, d_m = weights[index], xs[index], errors[index], d_updated[index]
            x_new, x_old = x[:, :reads], x[:, reads:]
            d_new, d_old = d_x[:, :reads], d_x[:, reads:]
            step = steps[:, index, None, None]
            a = error * -step
            gram = torch.bmm(x_new, x_old.transpose(1, 2))
            derivative = _derivative(xs[index + 1], ctx.tanh_output or index < layers - 1)
            d_new *= derivative[:, :reads]
            d_gram = torch.bmm(d_new, a.transpose(1, 2))
            d_a = torch.bmm(x_old, d_m.transpose(1, 2)) + torch.bmm(gram.transpose(1, 2), d_new)
            d_steps[:, index] = (error * d_a).sum((1, 2)).neg_()
            d_error = d_a * -step
            d_targets.append(-d_error)
            d_old += d_error
            d_old *= derivative[:, reads:]
            d_weights.append(torch.baddbmm(d_m, d_x.transpose(1, 2), x) if ctx.needs_input_grad[4 + index] else None)
            d_x = torch.bmm(d_x, m)
            d_x[:, :reads] += torch.bmm(d_gram, x_old)
            d_x[:, reads:] += torch.bmm(d_gram.transpose(1, 2), x_new) + torch.bmm(a, d_m)
        d_keys = d_x[:, :reads]
        d_keys[:, heads : 2 * heads] += d_x[:, reads:]
        return (d_keys, torch.cat(d_targets[::-1], 2), d_steps, None, *d_weights[::-1])


class GradientStep(torch.autograd.Function):
    """`write_gradient`, then `activations` of all keys.

    Three passes through the layers: the write keys forward through the old memory (z), their errors backward (δ), and
    all keys forward through the updated memory (y).
    """

    @staticmethod
    def forward(
        ctx: Any, keys: Tensor, values: Tensor, steps: Tensor, tanh_output: bool, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """As `MNM.write_then_read`."""
        layers, heads = len(weights), values.shape[1]
        has_tanh = [True] * (layers - 1) + [tanh_output]
        zs = [keys[:, heads : 2 * heads]]
        for index, m in enumerate(weights):
            z = torch.bmm(zs[-1], m.transpose(1, 2))
            zs.append(z.tanh_() if has_tanh[index] else z)
        deltas = [(zs[-1] - values) * _derivative(zs[-1], tanh_output)]
        propagated = []  # δ^l M^l, from l = L down to 2
        for index in reversed(range(1, layers)):
            propagated.append(torch.bmm(deltas[-1], weights[index]))
            deltas.append(propagated[-1] * _derivative(zs[index]))
        deltas.reverse()
        propagated.reverse()
        ys, updated = [keys], []
        for index, m in enumerate(weights):
            a = deltas[index] * -steps[:, index, None, None]
            updated.append(torch.baddbmm(m, a.transpose(1, 2), zs[index]))
            y = torch.bmm(ys[-1], m.transpose(1, 2))
            y += torch.bmm(torch.bmm(ys[-1], zs[index].transpose(1, 2)), a)
            ys.append(y.tanh_() if has_tanh[index] else y)
        ctx.save_for_backward(values, steps, *weights, *zs, *ys, *deltas, *propagated)
        ctx.has_tanh = has_tanh
        return (ys[-1], *updated)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_recalled: Tensor, *d_updated: Tensor) -> tuple[Tensor | None, ...]:
        values, steps, *saved = ctx.saved_tensors
        layers, heads = len(d_updated), values.shape[1]
        ends = pairwise([0, layers, 2 * layers + 1, 3 * layers + 2, 4 * layers + 2, 5 * layers + 1])
        weights, zs, ys, deltas, propagated = (saved[i:j] for i, j in ends)
        d_steps = torch.empty_like(steps)
        # gradients of each layer's z^{l-1} and δ^l so far, and the pairs whose outer products sum to that of M^l
        d_zs, d_deltas, outer = [], [], []

        # all keys, down through the updated memory and into its factors
        d_y = d_recalled
        for index in reversed(range(layers)):
            m, y, z, delta, d_m = weights[index], ys[index], zs[index], deltas[index], d_updated[index]
            step = steps[:, index, None, None]
            a = delta * -step
            gram = torch.bmm(y, z.transpose(1, 2))
            d_q = d_y * _derivative(ys[index + 1], ctx.has_tanh[index])
            d_gram = torch.bmm(d_q, a.transpose(1, 2))
            d_a = torch.bmm(z, d_m.transpose(1, 2)) + torch.bmm(gram.transpose(1, 2), d_q)
            d_steps[:, index] = (delta * d_a).sum((1, 2)).neg_()
            d_deltas.append(d_a * -step)
            d_zs.append(torch.bmm(a, d_m) + torch.bmm(d_gram.transpose(1, 2), y))
            outer.append([(d_q, y)])
            d_y = torch.bmm(d_q, m) + torch.bmm(d_gram, z)
        for by_layer in (d_zs, d_deltas, outer):
            by_layer.reverse()

        # errors, from the first layer up: δ^{l-1} = (δ^l M^l) ∘ (1 - (z^{l-1})²)
        for index in range(1, layers):
            d_zs[index] -= 2 * zs[index] * d_deltas[index - 1] * propagated[index - 1]
            d_propagated = d_deltas[index - 1] * _derivative(zs[index])
            d_deltas[index] += torch.bmm(d_propagated, weights[index].transpose(1, 2))
            outer[index].append((deltas[index], d_propagated))
        d_z = d_deltas[-1] * _derivative(zs[-1], ctx.has_tanh[-1])
        d_values = -d_z
        if ctx.has_tanh[-1]:
            d_z = d_z - 2 * zs[-1] * d_deltas[-1] * (zs[-1] - values)

        # write keys, down through the old memory
        d_weights: list[Tensor | None] = []
        for index in reversed(range(layers)):
            d_p = d_z * _derivative(zs[index + 1], ctx.has_tanh[index])
            outer[index].append((d_p, zs[index]))
            d_z = d_zs[index] + torch.bmm(d_p, weights[index])
            if ctx.needs_input_grad[4 + index]:
                left, right = (torch.cat(rows, 1) for rows in zip(*outer[index], strict=True))
                d_weights.append(torch.baddbmm(d_updated[index], left.transpose(1, 2), right))
            else:
                d_weights.append(None)
        d_y[:, heads : 2 * heads] += d_z
        return (d_y, d_values, d_steps, None, *d_weights[::-1])


def _derivative(z: Tensor, has_tanh: bool = True) -> Tensor:
    """The activation's derivative from its value z: 1 - z² for tanh, 1 for a linear layer."""
    return 1 - z.square() if has_tanh else torch.ones_like(z)
