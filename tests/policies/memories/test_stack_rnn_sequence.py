"""The stack RNN over time: the loops in C against the equations, forward and backward, episodes starting anywhere."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from sequences import begun, expect_acting_is_the_equations, expect_close, trained_both_ways, trained_by

from policies.memories import make_memory
from policies.memories.stack_rnn import fast as stack_fast
from policies.memories.stack_rnn import fast_native as stack_native
from policies.memories.stack_rnn.fast import FastStackRNN
from policies.memories.time.taped import TapedRecording
from policies.native import compiler as native

compiled = pytest.mark.skipif(
    native.library(stack_native.SOURCE, torch.float32) is None, reason="there is no C compiler here"
)


def drawn(seed: int) -> tuple[dict[str, Any], int, int]:
    """Options, steps and environments: from one to several SIMD vectors, tiles and blocks."""
    random = Random(seed)
    capacity = random.choice((1, 2, 5, 16, 33))
    options: dict[str, Any] = {"capacity": capacity, "top_k": random.randint(1, min(3, capacity))}
    options |= {"hidden_size": random.choice((1, 3, 8, 17, 33)), "num_stacks": random.randint(1, 4)}
    options |= {name: random.random() < 0.5 for name in ("no_op", "recurrent", "bias")}
    return options, random.randint(1, 9), random.choice((1, 2, 3, 8, 9, 17))


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(16))
def test_the_loops_are_the_equations(monkeypatch: pytest.MonkeyPatch, seed: int, dtype: torch.dtype) -> None:
    """Whatever the options: unrolled, recorded on several tapes, in blocks and on threads."""
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    monkeypatch.setattr(stack_native, "CHUNK_ROWS", 3 * batch)
    monkeypatch.setattr(stack_native, "BLOCK", 4)
    monkeypatch.setattr(stack_fast, "MIN_STEPS", 4)
    memory = make_memory("stack-rnn", input_size=3, **options).to(dtype)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter *= 2  # strong enough for every term to matter
    xs, state = torch.randn(length, batch, 3, dtype=dtype), begun(memory, batch)
    starts = torch.rand(length, batch) < 0.3 if seed % 3 else None
    assert isinstance(memory._fast_form, FastStackRNN)
    assert memory._fast_form.usable()
    looped = trained_both_ways(memory, xs, starts, state, threads=1 + seed % 3)
    memory.fast = False
    limits = {"rtol": 1e-9, "atol": 1e-11} if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    plain = trained_by(memory, xs, starts, state)
    for found in looped:
        expect_close(found, plain, **limits)


@compiled
@pytest.mark.parametrize("seed", range(4))
def test_a_step_while_acting_is_the_equations(seed: int) -> None:
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    memory = make_memory("stack-rnn", input_size=3, **options).double()
    xs = torch.randn(length, batch, 3, dtype=torch.float64)
    expect_acting_is_the_equations(memory, xs, memory.initial_state(batch))


def test_rounded_actions_and_no_compiler_are_left_to_the_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    memory = make_memory("stack-rnn", input_size=3, hidden_size=6, capacity=7, rounding="evaluation").double()
    xs, state = torch.randn(6, 3, 3, dtype=torch.float64), begun(memory, 3)
    form = memory._fast_form
    assert isinstance(form, FastStackRNN)
    usual = trained_by(memory, xs, None, state, recorded=True)
    memory.eval()
    assert not form.usable()
    memory.train()
    monkeypatch.setenv("ENGRAM_NATIVE", "0")
    assert not form.usable()
    assert not isinstance(memory.record(state, 2), TapedRecording)
    expect_close(usual, trained_by(memory, xs, None, state, recorded=True), 1e-9, 1e-11)


@compiled
def test_a_graph_may_be_gone_back_twice() -> None:
    torch.manual_seed(0)
    memory = make_memory("stack-rnn", input_size=3, hidden_size=6, capacity=7).double()
    xs = torch.randn(6, 3, 3, dtype=torch.float64, requires_grad=True)
    loss = memory.unroll(xs, None, begun(memory, 3)).outputs.square().sum()
    first, second = (torch.autograd.grad(loss, xs, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
