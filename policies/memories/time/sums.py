"""Gradients of weights that every step shares, as a few large products."""

from __future__ import annotations

from torch import Tensor

ROWS = 512
"""Steps, counted in every environment, that are taken before the products over them: what these take in is in the cache
then, and the backward pass stores no more of it."""


class Sum:
    """The gradients of a weight and its bias, as steps are gone back.

    Args:
        gradients: of what came out, `[.., B, out]` or `[.., B, H, out]`, for the steps that are added.
        inputs: what went in at all steps, `[T, B, in]` or `[T, B, H, in]`.
    """

    def __init__(self, gradients: Tensor, inputs: Tensor) -> None:
        self.gradients, self.inputs = gradients, inputs
        self.weight = inputs.new_zeros(inputs.shape[-1], gradients.shape[-1])
        """Transposed: MKL is the faster by a tenth where the narrower one is first."""
        self.bias = inputs.new_zeros(gradients.shape[-1])

    def add(self, begin: int, end: int) -> None:
        """The gradients are those of the steps `begin` ... `end` - 1."""
        found = self.gradients[: end - begin].flatten(0, -2)
        self.weight.addmm_(self.inputs[begin:end].flatten(0, -2).t(), found)
        self.bias += found.sum(0)
