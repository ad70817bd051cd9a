"""The memory function of MNM and its two write rules, as the paper writes them.

The weights φ are a list of matrices M^l `[B, D_l, D_{l-1}]`, l = 1..L, one set for each batch entry. Vectors are rows:
those of the H heads are `[B, H, D]`. A rule maps the matrices before the step to those after it; `fast_step.py` does
the same in fewer passes over the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def activations(weights: Sequence[Tensor], keys: Tensor, tanh_output: bool) -> list[Tensor]:
    """z^0 ... z^L of `keys` `[B, N, D_0]`, §3.2: z^l = tanh(M^l z^{l-1}); z^L without tanh unless `tanh_output`."""
    z = [keys]
    for index, m in enumerate(weights, start=1):
        z.append(torch.bmm(z[-1], m.transpose(1, 2)))
        if index < len(weights) or tanh_output:
            z[-1] = z[-1].tanh()
    return z


def write_local(
    weights: Sequence[Tensor], keys: Tensor, expected: Sequence[Tensor], steps: Tensor, tanh_output: bool
) -> list[Tensor]:
    """The perceptron rule, eq. (4), summed over heads: M^l ← M^l − s_l Σ_i (z^l_i − z'^l_i) z^{l-1}_iᵀ.

    Args:
        weights: M^l.
        keys: k^w, `[B, H, d_k]`.
        expected: z'^l, `[B, H, D_l]` for each layer.
        steps: s_l, `[B, L]`: the rate β, divided by the number of heads.
        tanh_output: whether the last layer has a tanh.
    """
    z = activations(weights, keys, tanh_output)
    updated = []
    for index, m in enumerate(weights):
        error = z[index + 1] - expected[index]
        updated.append(m - steps[:, index, None, None] * torch.bmm(error.transpose(1, 2), z[index]))
    return updated


def write_gradient(
    weights: Sequence[Tensor], keys: Tensor, values: Tensor, steps: Tensor, tanh_output: bool
) -> list[Tensor]:
    """The gradient step, eq. (2) and (3), in closed form: φ ← φ − s ½∇ Σ_i ‖f_φ(k^w_i) − v^w_i‖².

    `steps` contains the gradient's factor 2. Every operation is differentiable: autograd gives second-order gradients.

    Args:
        weights: M^l.
        keys: k^w, `[B, H, d_k]`.
        values: v^w, `[B, H, d_v]`.
        steps: s_l, `[B, L]`.
        tanh_output: whether the last layer has a tanh.
    """
    z = activations(weights, keys, tanh_output)
    delta = z[-1] - values  # ½ ∂‖·‖²/∂(M^l z^{l-1}), from the last layer down
    if tanh_output:
        delta = delta * (1 - z[-1].square())
    updated = []
    for index in reversed(range(len(weights))):
        m = weights[index]
        updated.append(m - steps[:, index, None, None] * torch.bmm(delta.transpose(1, 2), z[index]))
        if index > 0:
            delta = torch.bmm(delta, m) * (1 - z[index].square())
    return updated[::-1]
