"""Plastic networks by C loops and by torch's operations, against the equations: values and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sequences import expect_acting_is_the_equations, expect_close, trained_by

from policies.memories import make_memory
from policies.memories.contract import Memory, State
from policies.memories.plastic import fast_native as plastic_native
from policies.memories.plastic import fast_sequence
from policies.memories.plastic.fast_native import NativeTape
from policies.memories.plastic.fast_sequence import FastPlastic, Tape
from policies.native import compiler as native

compiled = pytest.mark.skipif(
    native.library(plastic_native.SOURCE, torch.float32) is None, reason="there is no C compiler here"
)
SIZES = [(1, 1, 1), (2, 3, 17), (9, 17, 5), (23, 4, 33)]
RULES = ["oja", "hebb", "clipped"]


def built(name: str, rule: str, units: int, dtype: torch.dtype = torch.float64) -> Memory:
    """Strongly plastic, so that every term matters; the bounds of "clipped" are met."""
    scale = 1.2 / units**0.5
    options = {"rule": rule, "init_scale": scale, "init_eta": 0.3, "clip": 0.3, "parametrization": "paper"}
    memory = make_memory(name, input_size=3, hidden_size=units, **options).to(dtype)
    with torch.no_grad():
        memory.w -= scale / 2
        if memory.alpha.numel() > 1:
            memory.alpha -= scale / 3
    return memory


def begun(memory: Memory, batch: int) -> State:
    state = memory.initial_state(batch)
    return {name: 0.5 * torch.randn(value.shape, dtype=value.dtype) for name, value in state.items()}


@pytest.fixture(params=["loops", "operations"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By C loops, or by what stands in for them."""
    loops: str = request.param
    if loops == "operations":
        monkeypatch.setenv("ENGRAM_NATIVE", "0")
    elif native.library(plastic_native.SOURCE, torch.float64) is None:
        pytest.skip("there is no C compiler here")
    return loops


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["plastic", "homo-plastic"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_sequence_is_the_equations(
    size: tuple[int, int, int], name: str, rule: str, share: float, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unrolled, recorded on several tapes and shared out among threads; episodes may start anywhere."""
    length, batch, units = size
    monkeypatch.setattr(fast_sequence, "MIN_STEPS", 5)
    memory = built(name, rule, units)
    xs, state = torch.randn(length, batch, 3, dtype=torch.float64), begun(memory, batch)
    starts = torch.rand(length, batch) < share if share else None
    form = memory._fast_form
    assert isinstance(form, FastPlastic)
    assert isinstance(form.tape(state, 1), NativeTape if way == "loops" else Tape)
    torch.set_num_threads(2 if batch > 4 else 1)
    try:
        fast = [trained_by(memory, xs, starts, state, recorded) for recorded in (False, True)]
    finally:
        torch.set_num_threads(1)
    memory.fast = False
    plain = trained_by(memory, xs, starts, state)
    for found in fast:
        expect_close(found, plain, 1e-9, 1e-10)


@compiled
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["plastic", "homo-plastic"])
@pytest.mark.parametrize("units", [5, 32])
def test_a_step_while_acting_is_the_equations(
    units: int, name: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the loops where the units fill whole vectors."""
    monkeypatch.setattr(plastic_native, "MIN_NUMBERS", 1)
    memory = built(name, rule, units)
    assert plastic_native.faster_for_a_step(memory.initial_state(3)["hebb"]) == (units == 32)
    expect_acting_is_the_equations(memory, torch.randn(6, 3, 3, dtype=torch.float64), begun(memory, 3))


@compiled
@pytest.mark.parametrize("name", ["plastic", "homo-plastic"])
def test_single_precision_is_near(name: str) -> None:
    memory: Any = built(name, "oja", 40, torch.float32)
    xs, state = torch.randn(30, 3, 3), begun(memory, 3)
    found = trained_by(memory, xs, None, state)
    memory.double()
    exact = trained_by(memory, xs.double(), None, {key: value.double() for key, value in state.items()})
    for name, expected in exact.items():
        assert (found[name].double() - expected).norm() <= 1e-4 * expected.norm(), name


@compiled
def test_a_graph_may_be_gone_back_twice() -> None:
    memory = built("plastic", "oja", 7)
    xs = torch.randn(6, 3, 3, dtype=torch.float64, requires_grad=True)
    loss = memory.unroll(xs, None, begun(memory, 3)).outputs.square().sum()
    first, second = (torch.autograd.grad(loss, xs, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
