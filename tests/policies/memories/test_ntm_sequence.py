"""The NTM over time: the loops in C against the equations, forward and backward, with episodes that start anywhere."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from sequences import expect_acting_is_the_equations, expect_close, trained_both_ways, trained_by

from policies.memories import make_memory
from policies.memories.contract import Memory, State
from policies.memories.ntm import fast_native as ntm_native
from policies.memories.ntm import fast_sequence as ntm_sequence
from policies.memories.ntm.fast import FastNTM
from policies.memories.time.taped import TapedRecording
from policies.native import compiler as native

compiled = pytest.mark.skipif(
    native.library(ntm_native.SOURCE, torch.float32) is None, reason="there is no C compiler here"
)
FEATURES = 3


def drawn(seed: int) -> tuple[dict[str, Any], int, int]:
    """Options, steps and environments: every option, and from one to several SIMD vectors, tiles and blocks."""
    random = Random(seed)
    slots = random.choice((5, 8, 16, 17, 33))
    options: dict[str, Any] = {"slots": slots, "shift_range": random.choice((0, 1, 2, (slots - 1) // 2))}
    options |= {name: random.choice((1, 3, 5, 8, 16, 17)) for name in ("hidden_size", "word_size", "output_size")}
    options |= {name: random.randint(1, 3) for name in ("read_heads", "write_heads", "num_layers")}
    options |= {"controller": random.choice(("lstm", "feedforward")), "variant": random.choice(("paper", "code"))}
    options |= {"memory_init": random.choice(("constant", "learned", "random"))}
    options |= {"key_activation": random.choice(("linear", "tanh"))}
    return options, random.randint(1, 9), random.choice((1, 2, 3, 8, 9, 17))


def built(options: dict[str, Any], dtype: torch.dtype) -> Memory:
    memory = make_memory("ntm", input_size=FEATURES, **options).to(dtype)
    with torch.no_grad():
        memory.interface.weight *= 4  # strong enough for every term to matter
        for name, parameter in memory.named_parameters():
            if name.startswith("initial"):
                parameter += 0.5 * torch.randn_like(parameter)
    return memory


def begun(memory: Memory, batch: int) -> State:
    """A state in the middle of an episode, another in every environment."""
    state = {name: value.detach().clone() for name, value in memory.initial_state(batch).items()}
    return {
        name: value + 0.1 * (torch.rand_like(value) if "weights" in name else torch.randn_like(value))
        for name, value in state.items()
    }


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(24))
def test_the_loops_are_the_equations(monkeypatch: pytest.MonkeyPatch, seed: int, dtype: torch.dtype) -> None:
    """Whatever the options, wherever episodes start, unrolled and recorded, in blocks, on threads: as step by step."""
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    monkeypatch.setattr(ntm_sequence, "CHUNK_ROWS", 3 * batch)
    monkeypatch.setattr(ntm_native, "MIN_BLOCK", 2)
    monkeypatch.setattr(ntm_native, "BLOCK_BYTES", 1)
    memory = built(options, dtype)
    xs, state = torch.randn(length, batch, FEATURES, dtype=dtype), begun(memory, batch)
    starts = torch.rand(length, batch) < 0.3 if seed % 3 else None
    form = memory._fast_form
    assert isinstance(form, FastNTM)
    assert form.usable()
    looped = trained_both_ways(memory, xs, starts, state, threads=1 + seed % 3, room=2)
    memory.fast = False
    limits = {"rtol": 1e-8, "atol": 1e-10} if dtype is torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    plain = trained_by(memory, xs, starts, state)
    for found in looped:
        expect_close(found, plain, **limits)


@compiled
@pytest.mark.parametrize("seed", range(6))
def test_a_step_while_acting_is_the_equations(seed: int) -> None:
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    memory = built(options, torch.float64)
    xs = torch.randn(length, batch, FEATURES, dtype=torch.float64)
    expect_acting_is_the_equations(memory, xs, memory.initial_state(batch))


@compiled
def test_sharp_heads_keep_their_gradients_in_single_precision() -> None:
    """γ near 60 and β near 100: powers that underflow, and content weights of which all but one are zero."""
    torch.manual_seed(0)
    memory = built({"hidden_size": 8, "slots": 16, "word_size": 4}, torch.float32)
    with torch.no_grad():
        sizes = memory.address_sizes
        rows = memory.interface.bias[: 2 * sum(sizes)].view(2, -1)
        rows[:, sizes[0]], rows[:, -1] = 100.0, 60.0
    xs, state = torch.randn(6, 3, FEATURES), begun(memory, 3)
    found = trained_by(memory, xs, None, state)
    exact = trained_by(memory.double(), xs.double(), None, {n: v.double() for n, v in state.items()})
    for name, expected in exact.items():
        scale = expected.abs().max().clamp(min=1e-3)
        assert (found[name].double() - expected).abs().max() < 3e-3 * scale, name


def test_without_loops_it_is_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    memory = built({"hidden_size": 6, "slots": 7}, torch.float64)
    xs, state = torch.randn(6, 3, FEATURES, dtype=torch.float64), begun(memory, 3)
    starts = torch.rand(6, 3) < 0.3
    usual = trained_by(memory, xs, starts, state, recorded=True, room=2)
    monkeypatch.setenv("ENGRAM_NATIVE", "0")
    assert not isinstance(memory.record(state, 2), TapedRecording)
    expect_close(usual, trained_by(memory, xs, starts, state, recorded=True, room=2), 1e-9, 1e-11)


def test_what_no_loop_can_take_is_left_to_the_equations() -> None:
    for options in ({"num_layers": ntm_native.MAX_LAYERS + 1}, {"slots": ntm_native.MAX_NUMBERS // 2 + 1}):
        memory = make_memory("ntm", input_size=FEATURES, hidden_size=4, word_size=2, **options)
        assert isinstance(memory._fast_form, FastNTM)
        assert not memory._fast_form.usable()
        with torch.no_grad():
            assert memory.step(torch.zeros(1, FEATURES), memory.initial_state(1)).output.shape == (1, 4)


@compiled
def test_a_graph_may_be_gone_back_twice() -> None:
    torch.manual_seed(0)
    memory = built({"hidden_size": 6, "slots": 7}, torch.float64)
    xs = torch.randn(6, 3, FEATURES, dtype=torch.float64, requires_grad=True)
    loss = memory.unroll(xs, None, begun(memory, 3)).outputs.square().sum()
    first, second = (torch.autograd.grad(loss, xs, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
