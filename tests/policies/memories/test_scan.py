"""The scan against a loop over steps, in float64 and complex128, forward and backward, with random resets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policies.memories.time import scan as module
from policies.memories.time.scan import scan


def loop(a: Tensor, b: Tensor, before: Tensor, starts: Tensor | None) -> Tensor:
    """h_t = a_t h_{t-1} + b_t as it is written, entry by entry of the batch."""
    rows = []
    for i in range(b.shape[1]):
        h, steps = before[i], []
        for t in range(len(b)):
            h = b[t, i] if starts is not None and starts[t, i] else a[t, i] * h + b[t, i]
            steps.append(h)
        rows.append(torch.stack(steps))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("narrow", [0, 10**9], ids=["stepped", "chunked"])
@pytest.mark.parametrize("length", [1, 2, 17, 64, 90])
def test_a_scan_is_the_loop(length: int, narrow: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NARROW", narrow)
    monkeypatch.setattr(module, "LONG", 2)
    monkeypatch.setattr(module, "SHORT", 2)
    torch.manual_seed(length)
    a, b = torch.randn(2, length, 3, 4, dtype=dtype)
    a = 0.95 * a / a.abs()
    a[length // 2, 1] = 0  # a coefficient of zero is no exception
    before, weights = torch.randn(3, 4, dtype=dtype), torch.randn(length, 3, 4, dtype=dtype)
    for starts in (None, torch.rand(length, 3) < 0.2, torch.ones(length, 3, dtype=torch.bool)):
        found = []
        for way in (scan, loop):
            leaves = [whole.clone().requires_grad_() for whole in (a, b, before)]
            h = way(*leaves, starts)
            weighed = (h * weights).sum()
            weighed = weighed.real if dtype.is_complex else weighed
            gradients = torch.autograd.grad(weighed, leaves, allow_unused=True, materialize_grads=True)
            found.append((h, *gradients))
        for ours, expected in zip(*found, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("length", [10, 100])
def test_coefficients_may_be_expanded_and_gradients_of_others_are_left_out(length: int) -> None:
    a = torch.full((4,), 0.5, dtype=torch.float64, requires_grad=True)
    b, before = torch.randn(length, 3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    h = scan(a.expand(length, 3, 4), b, before)
    torch.testing.assert_close(h, loop(a.expand(length, 3, 4), b, before, None))
    (gradient,) = torch.autograd.grad(h.sum(), a)
    (expected,) = torch.autograd.grad(loop(a.expand(length, 3, 4), b, before, None).sum(), a)
    torch.testing.assert_close(gradient, expected)


def test_chunks_take_far_fewer_operations_than_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU is for: about 2 √T launches forward and as many backward."""

    def launches(narrow: int) -> int:
        monkeypatch.setattr(module, "NARROW", narrow)
        a, b = torch.rand(2, 400, 2, 3).requires_grad_().unbind()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            scan(a, b, torch.zeros(2, 3)).sum().backward()  # type: ignore[no-untyped-call]
        working = ("addcmul", "mul", "copy_", "cumprod", "cat", "stack", "flip")
        return sum(event.name.removeprefix("aten::").rstrip("_") in working for event in profile.events() or ())

    assert launches(0) > 800
    assert launches(10**9) < 140
