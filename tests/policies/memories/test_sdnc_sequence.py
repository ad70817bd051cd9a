"""The sparse DNC over time: the loops in C against the equations, forward and backward, episodes starting anywhere."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from sequences import expect_acting_is_the_equations, expect_close, trained_both_ways, trained_by
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import Memory, State
from policies.memories.sdnc import fast_native as sdnc_native
from policies.memories.sdnc.fast import FastSDNC
from policies.memories.shared.addressing import inverse_norms
from policies.native import compiler as native

compiled = pytest.mark.skipif(
    native.library(sdnc_native.SOURCE, torch.float32) is None, reason="there is no C compiler here"
)


def drawn(seed: int) -> tuple[dict[str, Any], int, int]:
    """Options, steps and environments: from one to several SIMD vectors, tiles and blocks; slots that fill up."""
    random = Random(seed)
    reads = random.randint(1, 4)
    options: dict[str, Any] = {"sparse_reads": reads, "slots": random.choice((reads, 5, 8, 13, 40))}
    options |= {"word_size": random.choice((1, 3, 8, 17)), "hidden_size": random.choice((1, 6, 8, 17))}
    options |= {"read_heads": random.randint(1, 4), "sparse_links": random.choice((1, 3, 8, 20))}
    return (
        options | {"access_threshold": random.choice((0.0, 0.005, 0.1))},
        random.randint(1, 12),
        random.choice((1, 2, 9)),
    )


def built(options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Memory:
    memory = make_memory("sdnc", input_size=3, **options).to(dtype)
    with torch.no_grad():
        memory.interface.weight *= 4  # strong enough for every term to matter
    return memory


def begun(memory: Memory, batch: int, steps: int = 6) -> State:
    """A state in the middle of an episode, with a memory and weightings that are not of its making."""
    memory.fast = False
    with torch.no_grad():
        xs = torch.randn(steps, batch, 3, dtype=memory.dtype)
        state = memory.unroll(xs, None, memory.initial_state(batch)).state
    memory.fast = True
    for name in ("hidden", "cell", "read_vectors", "memory"):
        state[name] = state[name] + 0.3 * torch.randn_like(state[name])
    state["read_weights"] = state["read_weights"] * (0.5 + 0.5 * torch.rand_like(state["read_weights"]))
    return state | {"inverse_norm": inverse_norms(state["memory"])}


def meant(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """In float64, without the numbers of empty links, which depend on the type and mean nothing."""
    logs, slots = found["successors"].double().unbind(2)
    rest = {name: value.double() for name, value in found.items()}
    return rest | {"successors": torch.stack([logs.masked_fill(slots < 0, 0), slots], 2)}


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(16))
def test_the_loops_are_the_equations(monkeypatch: pytest.MonkeyPatch, seed: int, dtype: torch.dtype) -> None:
    """Outputs, all of the state, all gradients, against float64; unrolled and recorded, in blocks and on threads."""
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    monkeypatch.setattr(sdnc_native, "BLOCK", 4)
    memory = built(options, dtype)
    xs, state = torch.randn(length, batch, 3, dtype=dtype), begun(memory, batch)
    starts = torch.rand(length, batch) < 0.3 if seed % 3 else None
    assert isinstance(memory._fast_form, FastSDNC)
    assert memory._fast_form.usable()
    looped = trained_both_ways(memory, xs, starts, state, threads=1 + seed % 3)
    memory.fast = False
    limits = {"rtol": 1e-8, "atol": 1e-10} if dtype is torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    exact = {name: value.double() for name, value in state.items()}
    plain = meant(trained_by(memory.double(), xs.double(), starts, exact))
    for found in looped:
        expect_close(meant(found), plain, **limits)


@compiled
@pytest.mark.parametrize("seed", range(4))
def test_a_step_while_acting_is_the_equations(seed: int) -> None:
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    memory = built(options)
    expect_acting_is_the_equations(memory, torch.randn(length, batch, 3).double(), memory.initial_state(batch))


@compiled
def test_the_working_copy_stands_in_for_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler, unrolled and recorded; `link_reads="products"` has no loops."""
    torch.manual_seed(0)
    memory = built({"slots": 13, "word_size": 5, "hidden_size": 6})
    xs, state = torch.randn(9, 3, 3).double(), begun(memory, 3)
    starts = torch.rand(9, 3) < 0.3
    looped = trained_by(memory, xs, starts, state)
    monkeypatch.setenv("ENGRAM_NATIVE", "0")
    form = memory._fast_form
    assert isinstance(form, FastSDNC)
    assert not form.usable()
    for recorded in (False, True):
        expect_close(trained_by(memory, xs, starts, state, recorded), looped, 1e-8, 1e-10)
    monkeypatch.delenv("ENGRAM_NATIVE")
    other = built({"link_reads": "products"})._fast_form
    assert isinstance(other, FastSDNC)
    assert not other.usable()


@compiled
def test_a_graph_may_be_gone_back_twice() -> None:
    torch.manual_seed(0)
    memory = built({"slots": 13, "word_size": 5})
    xs = torch.randn(6, 3, 3, dtype=torch.float64, requires_grad=True)
    loss = memory.unroll(xs, None, begun(memory, 3)).outputs.square().sum()
    first, second = (torch.autograd.grad(loss, xs, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
