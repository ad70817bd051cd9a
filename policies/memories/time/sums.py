"""Gradients of weights that all steps share, each as a few large products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from policies.native.loops import Loops

CHUNK_ROWS = 512
"""Number of rows (steps times environments) per product, so that its operands stay in the cache."""


class WeightGradient:
    """The gradients of a weight and its bias, summed during the backward pass over time.

    Args:
        gradients: buffer for the outputs' gradients of one chunk of steps, `[.., B, out]` or `[.., B, H, out]`.
        inputs: the inputs of all steps, `[T, B, in]` or `[T, B, H, in]`.
    """

    def __init__(self, gradients: Tensor, inputs: Tensor) -> None:
        self.gradients, self.inputs = gradients, inputs
        self.weight = inputs.new_zeros(inputs.shape[-1], gradients.shape[-1])
        """The gradient of the weight, transposed: MKL is a tenth faster if the narrower matrix comes first."""
        self.bias = inputs.new_zeros(gradients.shape[-1])

    def add(self, begin: int, end: int) -> None:
        """Adds the steps `begin` ... `end` - 1, whose gradients are in the buffer."""
        d_outputs = self.gradients[: end - begin].flatten(0, -2)
        self.weight.addmm_(self.inputs[begin:end].flatten(0, -2).t(), d_outputs)
        self.bias += d_outputs.sum(0)


def backward_in_chunks(
    loops: Loops, length: int, sums: Sequence[WeightGradient], d_out: Tensor, weight: Tensor, d_xs: Tensor | None
) -> None:
    """Runs the backward pass of C loops in chunks of steps, and computes gradients from the buffers of each chunk.

    Args:
        loops: the C loops.
        length: T.
        sums: the gradients of weights.
        d_out: buffer for the gradients of the product of the inputs with `weight`, `[chunk, B, out]`.
        weight: `[out, F]`.
        d_xs: output, the gradients of the inputs, `[T, B, F]`; None: not computed.
    """
    for end in range(length, 0, -len(d_out)):
        begin = max(0, end - len(d_out))
        loops.backward(begin, end)
        for each in sums:
            each.add(begin, end)
        if d_xs is not None:
            torch.mm(d_out[: end - begin].flatten(0, 1), weight, out=d_xs[begin:end].flatten(0, 1))
