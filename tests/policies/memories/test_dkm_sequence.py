"""The dynamic Kanerva machine over time: the loops in C against the equations, forward and backward."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from sequences import expect_acting_is_the_equations, expect_close, through, trained_by
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import Memory, State
from policies.memories.dkm import fast as dkm_fast
from policies.memories.dkm.fast import FastDKM
from policies.native import compiler as native

compiled = pytest.mark.skipif(
    native.library(dkm_fast.SOURCE, torch.float32) is None, reason="there is no C compiler here"
)


def drawn(seed: int) -> tuple[dict[str, Any], int, int]:
    """Options, steps and environments."""
    random = Random(seed)
    options: dict[str, Any] = {name: random.choice((1, 2, 5, 8, 17, 33)) for name in ("slots", "word_size")}
    options |= {"w_prior_stddev": random.choice((0.6, 1.0)), "obs_noise_stddev": random.choice((0.0, 0.5, 1.0))}
    return options, random.randint(1, 9), random.choice((1, 2, 3, 9))


def built(options: dict[str, Any], dtype: torch.dtype) -> Memory:
    memory = make_memory("dkm", input_size=3, output_size=4, **options).to(dtype)
    with torch.no_grad():
        memory.prior_log_var.fill_(0.3)
    return memory


def begun(memory: Memory, batch: int) -> State:
    """A state in the middle of an episode."""
    with torch.no_grad():
        xs = torch.randn(3, batch, 3, dtype=memory.dtype)
        state = memory.unroll(xs, None, memory.initial_state(batch)).state
    return {name: value + 0.1 * torch.randn_like(value) for name, value in state.items()}


def losses(memory: Memory, xs: Tensor, starts: Tensor | None, state: State, recorded: bool) -> dict[str, Tensor]:
    """The memory's own terms, and the gradients of a weighted sum of them."""
    memory.zero_grad()
    found = through(memory, xs, starts, state, recorded).losses
    weights = torch.linspace(0.5, 2, found["kl_m"].numel(), dtype=xs.dtype).view_as(found["kl_m"])
    (weights * (found["kl_m"] + 0.7 * found["kl_w"])).sum().backward()
    gradients = {n: p.grad.clone() for n, p in memory.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in found.items()} | gradients


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(12))
def test_the_loops_are_the_equations(seed: int, dtype: torch.dtype) -> None:
    """Whatever the options: outputs, states, losses, all gradients; unrolled and recorded, on threads."""
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    memory = built(options, dtype)
    xs, state = torch.randn(length, batch, 3, dtype=dtype), begun(memory, batch)
    starts = torch.rand(length, batch) < 0.3 if seed % 3 else None
    assert isinstance(memory._fast_form, FastDKM)
    assert memory._fast_form.usable()
    ways = [(way, recorded) for way in (trained_by, losses) for recorded in (False, True)]
    torch.set_num_threads(1 + seed % 3)
    try:
        looped = [way(memory, xs, starts, state, recorded) for way, recorded in ways]
    finally:
        torch.set_num_threads(1)
    memory.fast = False
    limits = {"rtol": 1e-8, "atol": 1e-10} if dtype is torch.float64 else {"rtol": 2e-3, "atol": 2e-3}
    for (way, _), found in zip(ways, looped, strict=True):
        expect_close(found, way(memory, xs, starts, state, False), **limits)


@compiled
@pytest.mark.parametrize("seed", range(4))
def test_a_step_while_acting_is_the_equations(seed: int) -> None:
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    memory = built(options, torch.float64)
    expect_acting_is_the_equations(memory, torch.randn(length, batch, 3).double(), memory.initial_state(batch))


def test_other_options_and_no_compiler_are_left_to_the_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    for other in ({"variant": "code"}, {"sample_w": True}, {"read_iterations": 2}, {"reconstruct": True}):
        form = make_memory("dkm", input_size=3, slots=4, word_size=5, **other)._fast_form
        assert isinstance(form, FastDKM)
        assert not form.usable()
    memory = built({"slots": 4, "word_size": 5}, torch.float64)
    xs, state = torch.randn(6, 3, 3).double(), begun(memory, 3)
    usual = trained_by(memory, xs, None, state, recorded=True)
    monkeypatch.setenv("ENGRAM_NATIVE", "0")
    assert memory._fast_form is not None
    assert not memory._fast_form.fits(6, (), grad=True)
    expect_close(usual, trained_by(memory, xs, None, state, recorded=True), 1e-9, 1e-11)


@compiled
def test_a_graph_may_be_gone_back_twice() -> None:
    torch.manual_seed(0)
    memory = built({"slots": 4, "word_size": 5}, torch.float64)
    xs = torch.randn(6, 3, 3, dtype=torch.float64, requires_grad=True)
    loss = memory.unroll(xs, None, begun(memory, 3)).outputs.square().sum()
    first, second = (torch.autograd.grad(loss, xs, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
