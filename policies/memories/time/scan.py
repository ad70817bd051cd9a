"""A scan: the linear recurrence h_t = a_t ∘ h_{t-1} + b_t over a whole sequence, with resets, real or complex.

The recurrence is associative: two steps are one step with coefficients (a_2 a_1, a_2 b_1 + b_2), so it can be computed
in parallel. On a GPU, and for narrow states on a CPU, the sequence is cut into about √T chunks that run in parallel,
with 2 √T operations instead of T. A wide state on a CPU is bound by memory traffic, which chunks would triple: it is
computed step by step, with one fused operation per step.

Unlike scans in log space, this one does not divide by products of coefficients, so coefficients may be exactly 0. A
reset is a_t = 0 at the first step of an episode.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NARROW, LONG = 512, 64
"""On a CPU, chunks are used for states of less than NARROW numbers and at least LONG steps. Forward and backward over
200 steps take 0.8 ms in chunks and 1.2 ms step by step with 256 numbers, 14 ms and 2.7 ms with 2,048."""
SHORT = 16
"""With fewer steps, chunks are not faster on any device."""


def scan(a: Tensor, b: Tensor, before: Tensor, starts: Tensor | None = None) -> Tensor:
    """All h_t = a_t ∘ h_{t-1} + b_t, `[T, B, ...]`; differentiable.

    >>> a, b = torch.full((4, 1), 0.5), torch.ones(4, 1)
    >>> scan(a, b, torch.zeros(1), torch.tensor([[False], [False], [True], [False]])).flatten()
    tensor([1.0000, 1.5000, 1.0000, 1.5000])

    Args:
        a: coefficients, `[T, B, ...]`, possibly an expanded view.
        b: inputs, `[T, B, ...]`.
        before: the state before the first step, `[B, ...]`.
        starts: bool `[T, B]`: where true, h_{t-1} is replaced by 0; None: no reset.

    Returns:
        h, `[T, B, ...]`.
    """
    if starts is not None:
        a = a.masked_fill(starts.view(*starts.shape, *[1] * (a.dim() - 2)), 0)
    result: Tensor = _Scan.apply(a, b, before)  # type: ignore[no-untyped-call]
    return result


class _Scan(torch.autograd.Function):
    """The gradient G_t of h_t is again a scan, backwards in time: G_t = g_t + a*_{t+1} G_{t+1}."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, before: Tensor) -> Tensor:
        h = _stepped(a, b, before) if _steps(b) else _chunked(a, b, before)
        ctx.save_for_backward(a, h, before)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        a, h, before = ctx.saved_tensors
        if a.is_complex():
            a, h, before = a.conj_physical(), h.conj_physical(), before.conj_physical()
        if _steps(g):
            total = _stepped_backward(a, g)
        else:
            next_a = torch.cat([a[1:], torch.zeros_like(a[:1])])
            total = _chunked(next_a.flip(0), g.flip(0), torch.zeros_like(before)).flip(0)
        d_a = None
        if ctx.needs_input_grad[0]:
            d_a = torch.empty_like(total)
            torch.mul(total[0], before, out=d_a[0])
            torch.mul(total[1:], h[:-1], out=d_a[1:])
        return d_a, total, a[0] * total[0] if ctx.needs_input_grad[2] else None


def _steps(b: Tensor) -> bool:
    """Whether to compute step by step; `b`: the inputs."""
    on_cpu = b.device.type == "cpu"
    return len(b) < (LONG if on_cpu else SHORT) or (on_cpu and b[0].numel() >= NARROW)


def _stepped(a: Tensor, b: Tensor, before: Tensor) -> Tensor:
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    for a_t, b_t, h_t in zip(a.unbind(), b.unbind(), h.unbind(), strict=True):
        before = torch.addcmul(b_t, a_t, before, out=h_t)
    return h


def _stepped_backward(a: Tensor, g: Tensor) -> Tensor:
    total = torch.empty_like(g, memory_format=torch.contiguous_format)
    total[-1] = next_total = g[-1]
    steps = zip(a.unbind()[:0:-1], g.unbind()[-2::-1], total.unbind()[-2::-1], strict=True)
    for a_t, g_t, total_t in steps:
        next_total = torch.addcmul(g_t, a_t, next_total, out=total_t)
    return total


def _chunked(a: Tensor, b: Tensor, before: Tensor) -> Tensor:
    """C chunks of L steps: in parallel, each from state 0; then the effect of the state before each chunk is added."""
    steps = math.isqrt(len(b) - 1) + 1
    chunks = -(-len(b) // steps)
    missing = chunks * steps - len(b)
    if missing:
        a, b = (torch.cat([whole, whole.new_zeros(missing, *whole.shape[1:])]) for whole in (a, b))
    a, b = (whole.reshape(chunks, steps, *whole.shape[1:]) for whole in (a, b))
    h = torch.empty_like(b)
    h[:, 0] = b[:, 0]
    for step in range(1, steps):
        torch.addcmul(b[:, step], a[:, step], h[:, step - 1], out=h[:, step])
    products = a.cumprod(1)  # factors of the state before the chunk
    carried = [before]
    for chunk in range(chunks - 1):
        carried.append(torch.addcmul(h[chunk, -1], products[chunk, -1], carried[-1]))
    h.addcmul_(products, torch.stack(carried).unsqueeze(1))
    return h.flatten(0, 1)[: chunks * steps - missing]
