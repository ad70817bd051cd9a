"""The D-NTM over time: the loops in C against the equations, forward and backward, episodes starting anywhere."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from sequences import begun, expect_acting_is_the_equations, expect_close, trained_both_ways, trained_by

from policies.memories import make_memory
from policies.memories.contract import Memory
from policies.memories.d_ntm import fast_native as d_ntm_native
from policies.memories.d_ntm.fast import FastDNTM
from policies.native import compiler as native

compiled = pytest.mark.skipif(
    native.library(d_ntm_native.SOURCE, torch.float32) is None, reason="there is no C compiler here"
)


def drawn(seed: int) -> tuple[dict[str, Any], int, int]:
    """Options, steps and environments: from one to several SIMD vectors, tiles and blocks."""
    random = Random(seed)
    options: dict[str, Any] = {
        name: random.choice((1, 3, 8, 17)) for name in ("hidden_size", "word_size", "address_size")
    }
    options |= {"slots": random.choice((1, 5, 15, 16, 33)), "usage_decay": random.choice((0.0, 0.1, 0.6))}
    options |= {"read_heads": random.randint(1, 3), "write_heads": random.randint(1, 3)}
    options |= {name: random.random() < 0.5 for name in ("no_operation", "least_recently_used")}
    return options, random.randint(1, 9), random.choice((1, 2, 9))


def built(options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Memory:
    memory = make_memory("d-ntm", input_size=3, **options).to(dtype)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter *= 2  # strong enough for every term to matter
    return memory


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(16))
def test_the_loops_are_the_equations(monkeypatch: pytest.MonkeyPatch, seed: int, dtype: torch.dtype) -> None:
    """Against float64: outputs, all of the state, all gradients; unrolled and recorded, in blocks and on threads."""
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    monkeypatch.setattr(d_ntm_native, "BLOCK", 4)
    memory = built(options, dtype)
    xs, state = torch.randn(length, batch, 3, dtype=dtype), begun(memory, batch)
    starts = torch.rand(length, batch) < 0.3 if seed % 3 else None
    assert isinstance(memory._fast_form, FastDNTM)
    assert memory._fast_form.usable()
    looped = trained_both_ways(memory, xs, starts, state, threads=1 + seed % 3)
    memory.fast = False
    exact = {name: value.double() for name, value in state.items()}
    plain = trained_by(memory.double(), xs.double(), starts, exact)
    limits = {"rtol": 1e-8, "atol": 1e-10} if dtype is torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    for found in looped:
        expect_close({name: value.double() for name, value in found.items()}, plain, **limits)


@compiled
@pytest.mark.parametrize("seed", range(4))
def test_a_step_while_acting_is_the_equations(seed: int) -> None:
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    memory = built(options)
    expect_acting_is_the_equations(memory, torch.randn(length, batch, 3).double(), memory.initial_state(batch))


def test_other_options_and_no_compiler_are_left_to_the_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    others: list[dict[str, Any]] = [{"addressing": "discrete"}, {"controller": "feedforward"}, {"num_layers": 2}]
    for other in (*others, {"reading_steps": 2}, {"entropy_coef": 0.1}, {"prediction_coef": 0.1}):
        form = make_memory("d-ntm", input_size=3, **other)._fast_form
        assert isinstance(form, FastDNTM)
        assert not form.usable()
    memory = built({"slots": 5, "word_size": 3})
    xs, state = torch.randn(6, 3, 3).double(), begun(memory, 3)
    usual = trained_by(memory, xs, None, state, recorded=True)
    monkeypatch.setenv("ENGRAM_NATIVE", "0")
    assert memory._fast_form is not None
    assert not memory._fast_form.fits(6, (), grad=True)
    expect_close(usual, trained_by(memory, xs, None, state, recorded=True), 1e-8, 1e-10)


@compiled
def test_a_graph_may_be_gone_back_twice() -> None:
    torch.manual_seed(0)
    memory = built({"slots": 5, "word_size": 3})
    xs = torch.randn(6, 3, 3, dtype=torch.float64, requires_grad=True)
    loss = memory.unroll(xs, None, begun(memory, 3)).outputs.square().sum()
    first, second = (torch.autograd.grad(loss, xs, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
