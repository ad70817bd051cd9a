"""The DNC's form for a GPU against the equations, on a CPU: few operations of torch and a custom backward."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from dnc_loops import BATCH, FEATURES, assert_same_with_gradients, build, random_state

from policies.memories.dnc.fast import FastDNC, TorchDNC
from policies.memories.time.taped import TapedRecording

CASES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "one read head": {"read_heads": 1, "bias": True},
    "three read heads, one slot": {"read_heads": 3, "slots": 1, "word_size": 1},
    "layers": {"num_layers": 3},
    "gradients clipped": {"clip_gradients": 0.05, "clip_value": None, "num_layers": 2},
    "the code": {"variant": "code", "strength": "softplus", "stop_usage_gradient": True, "bias": True},
}


@pytest.fixture(autouse=True)
def without_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGRAM_NATIVE", "0")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("resets", ["none start", "known", "unknown"])
@pytest.mark.parametrize("scale", [1.0, 50.0], ids=["usual", "saturated"])
def test_fast_is_plain_with_and_without_resets(case: str, resets: str, scale: float) -> None:
    """Values and gradients of inputs, parameters and the first state in float64, also where gates are 0 and 1."""
    torch.manual_seed(0)
    memory, length = build(**CASES[case]), 9
    with torch.no_grad():
        memory.interface.weight *= scale
    starts = None if resets == "none start" else torch.zeros(length, BATCH, dtype=torch.bool)
    if starts is not None:
        starts[0, 0] = starts[3, 1] = starts[4, 1] = starts[7] = True
    xs = torch.randn(length, BATCH, FEATURES).double().requires_grad_()
    state = {key: value.requires_grad_() for key, value in random_state(memory).items()}
    results = []
    for fast in (True, False):
        memory.fast = fast
        result = memory.unroll(xs, starts, state, [0, 3, 4, 7] if resets == "known" else None)
        results.append({"outputs": result.outputs, **result.state})
    leaves = {**state, "inputs": xs, **dict(memory.named_parameters())}
    assert_same_with_gradients(*results, leaves)
    for part in ("outputs", "linkage", "usage"):  # the same graph once more, from a part of it
        assert_same_with_gradients(*({part: result[part]} for result in results), leaves)


def test_recorded_steps_are_the_equations() -> None:
    """The state may be read at every step, and each is left as it was."""
    torch.manual_seed(0)
    memory, length = build(), 6
    state = {name: value.requires_grad_() for name, value in random_state(memory).items()}
    xs, starts = torch.randn(length, BATCH, FEATURES).double(), torch.zeros(length, BATCH, dtype=torch.bool)
    starts[2, 1] = True
    recording = memory.record(state, length)
    assert isinstance(recording, TapedRecording)
    taken = [recording.step(x, start if start.any() else None) for x, start in zip(xs, starts, strict=True)]
    states = [{name: value.clone() for name, value in step.state.items()} for step in taken]
    result = recording.unrolled()
    memory.fast = False
    plain = memory.unroll(xs, starts, state)
    ways = ({"outputs": each.outputs, **each.state} for each in (result, plain))
    assert_same_with_gradients(*ways, {**state, **dict(memory.named_parameters())})
    torch.testing.assert_close(torch.stack([step.output for step in taken]), plain.outputs)
    torch.testing.assert_close([step.state for step in taken], states, rtol=0, atol=0)


def test_the_graph_lets_go_of_the_tape() -> None:
    memory = build()
    result = memory.unroll(torch.randn(4, BATCH, FEATURES).double(), None, memory.initial_state(BATCH))
    node = next_sequence(result.outputs.grad_fn)
    result.outputs.sum().backward()  # type: ignore[no-untyped-call]
    gone = weakref.ref(node.tape)
    gc.disable()
    try:
        del result, node
        assert gone() is None, "a cycle keeps the tape until the garbage collector comes"
    finally:
        gc.enable()


def next_sequence(node: Any) -> Any:
    """The first node of a graph that holds a tape."""
    while not hasattr(node, "tape"):
        node = next(following for following, _ in node.next_functions if following is not None)
    return node


@pytest.mark.parametrize(
    ("options", "taken"),
    [({}, True), ({"clip_value": None}, True), ({"clip_value": 0.3}, False), ({"write_heads": 2}, False)],
)
def test_what_it_takes(options: dict[str, Any], taken: bool) -> None:
    memory = build(**options)
    form = memory._fast_form
    assert isinstance(form, FastDNC)
    assert isinstance(form.form(torch.zeros(1)), TorchDNC) == taken
    assert form.fits(4, None, True) == taken
    memory.unroll(torch.randn(4, BATCH, FEATURES).double(), None, memory.initial_state(BATCH))
