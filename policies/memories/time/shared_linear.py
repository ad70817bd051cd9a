"""A linear layer inside a loop over time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class SharedLinear:
    """x Wᵀ + base at every step of a sequence; the gradient of W is one product over all steps.

    Autograd would add a matrix as large as W to W's gradient at every step, which costs more than the layer. Here a
    step writes down its input and the gradient of its output. A scalar, handed from step to step, stands for W, so that
    autograd comes to W last.

    Args:
        weight: W, `[out, in]`.
    """

    def __init__(self, weight: Tensor) -> None:
        self._record = _Record(weight.detach())
        self._ghost: Tensor = _Enter.apply(self._record, weight)  # type: ignore[no-untyped-call]

    def __call__(self, x: Tensor, base: Tensor) -> Tensor:
        """`x` `[B, in]` and `base`, `[B, out]` or a bias `[out]`, to `[B, out]`."""
        output: Tensor
        self._ghost, output = _Apply.apply(self._record, self._ghost, x, base)  # type: ignore[no-untyped-call]
        return output


class _Record:
    """Inputs and gradients of the steps, collected during the backward pass."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.inputs: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def clear(self) -> None:
        self.inputs, self.gradients = [], []


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, record: _Record, weight: Tensor) -> Tensor:
        ctx.record = record
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_ghost: Tensor) -> tuple[None, Tensor]:
        record = ctx.record
        d_weight = torch.cat(record.gradients).t() @ torch.cat(record.inputs)
        record.clear()
        return None, d_weight


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, record: _Record, ghost: Tensor, x: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        ctx.record, ctx.base_size = record, base.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, record.weight)
        return ghost.new_zeros(()), torch.addmm(base, x, record.weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_ghost: Tensor | None, d_output: Tensor | None) -> tuple[Tensor | None, ...]:
        record, (x, weight) = ctx.record, ctx.saved_tensors
        if d_ghost is None:  # the last step is first in the backward pass
            record.clear()
            d_ghost = x.new_zeros(())
        if d_output is None:
            return None, d_ghost, None, None
        record.inputs.append(x)
        record.gradients.append(d_output)
        d_base = d_output.sum_to_size(ctx.base_size) if ctx.needs_input_grad[3] else None
        return None, d_ghost, d_output @ weight, d_base
