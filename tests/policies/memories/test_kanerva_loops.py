"""Kanerva++ with a controller over time: the loops in C against the equations, forward and backward."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from sequences import expect_acting_is_the_equations, trained_both_ways, trained_by

from policies.memories import make_memory
from policies.memories.contract import Memory, State
from policies.memories.kanerva import fast_blocks
from policies.memories.kanerva.memory import KanervaMemory
from policies.native import compiler as native

compiled = pytest.mark.skipif(
    native.library(fast_blocks.SOURCE, torch.float32) is None, reason="there is no C compiler here"
)
FEATURES = 3


def drawn(seed: int) -> tuple[dict[str, Any], int, int]:
    """Options, steps and environments: from one to several SIMD vectors, tiles and blocks."""
    random = Random(seed)
    options: dict[str, Any] = {
        name: random.choice((1, 3, 5, 8, 17)) for name in ("hidden_size", "output_size", "latent_size")
    }
    options |= {"dense_size": random.choice((3, 8)), "prior_features": random.choice((1, 4, 9))}
    options |= {name: random.randint(1, 3) for name in ("memory_channels", "read_heads")}
    options |= {"crop_size": 4, "memory_size": random.choice((5, 8, 9, 16))}
    options |= {"kl_weight": random.choice((0.0, 0.5)), "reconstruct": random.random() < 0.5}
    if random.random() < 0.3:
        options["map_shape"] = (1, 4, 4)
    return options, random.randint(1, 9), random.choice((1, 2, 3, 8, 9, 17))


def built(options: dict[str, Any], dtype: torch.dtype) -> Memory:
    memory = make_memory("kanerva++", input_size=FEATURES, **options).to(dtype)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter += 0.3 * torch.randn_like(parameter)  # every bias, and strong enough for every term to matter
    return memory


def begun(memory: Memory, batch: int) -> State:
    """A state in the middle of an episode, another in every environment."""
    return {name: 0.5 * torch.randn_like(value) for name, value in memory.initial_state(batch).items()}


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(16))
def test_the_loops_are_the_equations(monkeypatch: pytest.MonkeyPatch, seed: int, dtype: torch.dtype) -> None:
    """Whatever the options, wherever episodes start, unrolled and recorded, in blocks, on threads: as step by step."""
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    monkeypatch.setattr(fast_blocks, "BLOCK", 2)
    memory = built(options, dtype)
    xs, state = torch.randn(length, batch, FEATURES, dtype=dtype), begun(memory, batch)
    xs[length // 2, 0] = 0  # not written
    starts = torch.rand(length, batch) < 0.3 if seed % 3 else None
    assert isinstance(memory, KanervaMemory)
    form = memory.form._fast_form
    assert isinstance(form, fast_blocks.FastBlocks)
    assert form.native(state)
    looped = trained_both_ways(memory, xs, starts, state, threads=1 + seed % 3, room=2)
    memory.use_fast_form(False)
    plain = trained_by(memory, xs, starts, state)
    for found in looped:
        for name, expected in plain.items():
            # float32: relative to the largest gradient, as everything before it in time adds its rounding
            scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
            limit = 1e-9 * scale if dtype is torch.float64 else 2e-3 * scale
            torch.testing.assert_close(
                found[name], expected, rtol=0, atol=limit, msg=lambda text, n=name: f"{n}: {text}"
            )


@compiled
@pytest.mark.parametrize("seed", range(4))
def test_a_step_while_acting_is_the_equations(seed: int) -> None:
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    memory = built(options, torch.float64)
    xs = torch.randn(length, batch, FEATURES, dtype=torch.float64)
    expect_acting_is_the_equations(memory, xs, memory.initial_state(batch))


@pytest.mark.parametrize("options", [{"sample": True}, {"queries": {"query": 2}}, {"crop_size": 8, "memory_size": 16}])
def test_what_the_loops_do_not_take_is_stepped(options: dict[str, Any]) -> None:
    memory = make_memory("kanerva++", input_size=FEATURES, **options)
    assert isinstance(memory, KanervaMemory)
    form = memory.form._fast_form
    assert isinstance(form, fast_blocks.FastBlocks)
    assert not form.native(memory.initial_state(1))
