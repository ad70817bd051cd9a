"""The DNC over time by its C loops against the equations, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dnc_loops import assert_same_with_gradients, build, random_state
from torch import Tensor

from policies.memories.dnc import fast_native
from policies.memories.dnc.fast import FastDNC, NativeDNC, TorchDNC
from policies.memories.dnc.fast_sequence import NativeTape
from policies.memories.dnc.memory import DNC
from policies.memories.time.taped import TapedRecording
from policies.native.compiler import library

compiled = pytest.mark.skipif(library(fast_native.SOURCE, torch.float32) is None, reason="there is no C compiler here")
FEATURES = 3

CASES: dict[str, dict[str, Any]] = {
    "one read head": {"read_heads": 1},
    "three heads": {"read_heads": 3, "slots": 16, "word_size": 8},
    "seven heads, more slots than a line": {"read_heads": 7, "slots": 33, "word_size": 5},
    "one slot": {"slots": 1, "word_size": 1},
    "two write heads": {"write_heads": 2, "slots": 18},
    "three write heads, the code's order": {"write_heads": 3, "variant": "code"},
    "layers": {"num_layers": 3, "clip_value": 0.3},
    "gradients clipped": {"clip_gradients": 0.05, "clip_value": None, "num_layers": 2},
    "the code": {"variant": "code", "strength": "softplus", "stop_usage_gradient": True, "bias": True},
}


def native(memory: DNC) -> bool:
    form = memory._fast_form
    assert isinstance(form, FastDNC)
    return isinstance(form.form(memory.initial_state(1)["hidden"]), NativeDNC)


def without_allocation(**options: Any) -> DNC:
    """Slots are found by content alone. After a reset slots have equal usage but for rounding, so that which of them is
    allocated first depends on the order of sums."""
    memory = build(bias=True, **options)
    before = sum(memory.splits[:7])
    with torch.no_grad():
        memory.interface.bias[before : before + memory.write_heads] = -60
    return memory


def some_starts(length: int, batch: int) -> Tensor:
    """At the first step, in the middle for some and for all, and at the last."""
    starts = torch.rand(length, batch) < 0.1
    starts[length // 2] = True
    starts[0, 0] = starts[-1, -1] = True
    return starts


def all_of(memory: DNC, xs: Tensor, starts: Tensor | None, state: dict[str, Tensor], fast: bool) -> dict[str, Tensor]:
    memory.fast = fast
    result = memory.unroll(xs, starts, state)
    return {"outputs": result.outputs, **result.state}


@compiled
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("length", "batch"), [(11, 3), (4, 17), (1, 1), (7, 1)])
def test_the_loops_are_the_equations(case: str, length: int, batch: int) -> None:
    """Values and gradients of inputs, parameters and the first state, from outputs and the last state, in float64."""
    torch.manual_seed(0)
    memory = build(**CASES[case])
    assert native(memory)
    state = {name: value.requires_grad_() for name, value in random_state(memory, batch).items()}
    xs = torch.randn(length, batch, FEATURES).double().requires_grad_()
    starts = torch.zeros(length, batch, dtype=torch.bool)
    starts[-1, ::2] = batch > 1
    results = [all_of(memory, xs, starts, state, fast) for fast in (True, False)]
    leaves = {**state, "inputs": xs, **dict(memory.named_parameters())}
    assert_same_with_gradients(*results, leaves)
    # the same graph once more, from a part of it
    for part in ("outputs", "linkage", "usage"):
        assert_same_with_gradients(*({part: result[part]} for result in results), leaves)


@compiled
@pytest.mark.parametrize("case", [case for case in CASES if case != "the code"])
@pytest.mark.parametrize(("length", "batch"), [(11, 3), (6, 17), (9, 1)])
def test_the_loops_are_the_equations_after_resets(case: str, length: int, batch: int) -> None:
    torch.manual_seed(0)
    memory = without_allocation(**CASES[case])
    state = {name: value.requires_grad_() for name, value in random_state(memory, batch).items()}
    xs, starts = torch.randn(length, batch, FEATURES).double().requires_grad_(), some_starts(length, batch)
    results = [all_of(memory, xs, starts, state, fast) for fast in (True, False)]
    assert_same_with_gradients(*results, {**state, "inputs": xs, **dict(memory.named_parameters())})


@compiled
def test_blocks_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    memory = build()
    state = {name: value.requires_grad_() for name, value in random_state(memory, 7).items()}
    xs, starts = torch.randn(10, 7, FEATURES).double(), some_starts(10, 7)
    whole = all_of(memory, xs, starts, state, True)
    monkeypatch.setattr(fast_native, "BLOCK_BYTES", 1)
    monkeypatch.setattr(fast_native, "MIN_BLOCK", 2)
    torch.set_num_threads(2)
    try:
        shared = all_of(memory, xs, starts, state, True)
        assert_same_with_gradients(shared, whole, {**state, **dict(memory.named_parameters())})
    finally:
        torch.set_num_threads(1)


@compiled
def test_in_float32_and_from_the_start_of_an_episode() -> None:
    """A memory of zeros, and slots that are all free; a hundred steps."""
    torch.manual_seed(0)
    memory = without_allocation(slots=20, word_size=8)
    xs = torch.randn(100, 2, FEATURES)
    found = []
    for fast, dtype in ((True, torch.float32), (False, torch.float64)):
        memory = memory.to(dtype)
        memory.fast = fast
        result = memory.unroll(xs.to(dtype), None, memory.initial_state(2))
        parameters = dict(memory.named_parameters())
        gradients = torch.autograd.grad(result.outputs.square().mean(), list(parameters.values()))
        found.append({"outputs": result.outputs, **result.state, **dict(zip(parameters, gradients, strict=True))})
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name].double(), expected, rtol=1e-3, atol=1e-4)


@compiled
@pytest.mark.parametrize("room", [4, 20])
def test_recorded_steps_are_the_equations(room: int) -> None:
    """On several tapes, and on one that is not full; the state may be read at every step."""
    torch.manual_seed(0)
    memory, length, batch = without_allocation(), 10, 3
    state = {name: value.requires_grad_() for name, value in random_state(memory, batch).items()}
    xs, starts = torch.randn(length, batch, FEATURES).double(), some_starts(length, batch)
    recording = memory.record(state, room)
    assert isinstance(recording, TapedRecording)
    taken = [recording.step(x, start if start.any() else None) for x, start in zip(xs, starts, strict=True)]
    result = recording.unrolled()
    plain = all_of(memory, xs, starts, state, False)
    assert_same_with_gradients({"outputs": result.outputs, **result.state}, plain, {**state})
    torch.testing.assert_close(torch.stack([step.output for step in taken]), plain["outputs"])


@compiled
def test_a_single_step_is_the_equations() -> None:
    torch.manual_seed(0)
    memory = build(write_heads=2)
    state, x = random_state(memory, 5), torch.randn(5, FEATURES).double()
    before = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        ours, theirs = memory.step(x, state), memory(x, state)
    torch.testing.assert_close({"output": ours.output, **ours.state}, {"output": theirs.output, **theirs.state})
    torch.testing.assert_close(state, before, rtol=0, atol=0)


@compiled
def test_linkages_are_not_kept() -> None:
    memory = build(slots=64)
    tape = NativeTape(memory, memory.initial_state(1), 36)
    assert len(tape.checkpoints) == 6  # √36
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = memory.unroll(torch.randn(36, 1, FEATURES).double(), None, memory.initial_state(1))
    assert 6 < sum(kept.values()) / (8 * 64**2) < 18  # linkages; of the rest, 32 numbers a slot and step
    result.outputs.sum().backward()  # type: ignore[no-untyped-call]


def test_who_has_no_compiler_or_more_layers_is_taken_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    many = build(num_layers=fast_native.MAX_LAYERS + 1, slots=2)
    assert not native(many)
    monkeypatch.setenv("ENGRAM_NATIVE", "0")
    memory = build()
    form = memory._fast_form
    assert isinstance(form, FastDNC)
    assert isinstance(form.form(memory.initial_state(1)["hidden"]), TorchDNC)
