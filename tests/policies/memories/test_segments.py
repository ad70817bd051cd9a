"""Sequences whose insides are made again are those that keep every step, forward and backward."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import MEMORIES, every_memory
from torch import Tensor, nn

from policies.memories import make_memory
from policies.memories.contract import Memory, MemoryStep, State, Unrolled
from policies.memories.mnm import fast_native as mnm_native
from policies.memories.time import checkpointing as module
from policies.memories.time.checkpointing import SegmentedRecording, Segments, unroll_by_segments
from policies.memories.time.measure import stored_bytes
from policies.memories.time.unroll import unroll
from policies.native.compiler import library
from policies.testing.case import BATCH, everything, expect_same
from policies.testing.time import weighted_sum

LENGTH = 7
LONG = ("mnm-p", "mnm-g", "plastic", "homo-plastic", "dkm", "dnc")
"""Whose state, or what they keep of a step, is large."""


def starts_at(*places: tuple[int, int]) -> Tensor:
    starts = torch.zeros(LENGTH, BATCH, dtype=torch.bool)
    for t, b in places:
        starts[t, b] = True
    return starts


def recorded(
    memory: Memory,
    xs: Tensor,
    starts: Tensor | None,
    state: State,
    resets: list[int] | None,
    segment: int,
    queries: dict[str, Tensor] | None = None,
) -> Unrolled:
    recording = SegmentedRecording(memory, state, LENGTH, segment)
    acted_on = []
    for t, x in enumerate(xs):
        fresh = starts[t] if starts is not None and (resets is None or t in resets) else None
        asked = None if queries is None else {name: query[t] for name, query in queries.items()}
        step = recording.step(x, fresh, *([] if asked is None else [asked]))
        assert not step.output.requires_grad
        acted_on.append(step.output)
    result = recording.unrolled()
    torch.testing.assert_close(torch.stack(acted_on), result.outputs.detach(), rtol=1e-9, atol=1e-11)
    return result


@every_memory
def test_segments_are_the_plain_sequence(name: str) -> None:
    """Outputs, losses, maps, the last state and every gradient, in float64; seven steps, in threes and in twos."""
    memory = MEMORIES[name].build()
    starts, steps = starts_at((0, 1), (4, 0), (4, 1)), [0, 4]
    same(
        memory,
        name,
        lambda xs, state: unroll(memory, xs, starts, state, steps),
        lambda xs, state: unroll_by_segments(memory, xs, starts, state, None, segment=3),
        lambda xs, state: unroll_by_segments(memory, xs, starts, state, steps, segment=2),
        lambda xs, state: recorded(memory, xs, starts, state, steps, segment=3),
    )


@pytest.mark.parametrize("name", LONG)
def test_segments_without_a_start_are_the_plain_sequence(name: str) -> None:
    memory = MEMORIES[name].build()
    same(
        memory,
        name,
        lambda xs, state: unroll(memory, xs, None, state),
        lambda xs, state: unroll_by_segments(memory, xs, None, state, segment=3),
        lambda xs, state: recorded(memory, xs, None, state, None, segment=1),
        lambda xs, state: recorded(memory, xs, None, state, None, segment=2 * LENGTH),
    )


@pytest.mark.parametrize("name", LONG)
def test_segments_from_the_first_state_on(name: str) -> None:
    """Whose parts a memory may name in another order than those of later states, as the DNC does."""
    memory = MEMORIES[name].build()
    xs = MEMORIES[name].inputs(LENGTH, BATCH)
    outputs, gradients = [], []
    for way in (
        lambda state: unroll(memory, xs, None, state),
        lambda state: recorded(memory, xs, None, state, None, segment=2),
    ):
        outputs.append(way(memory.initial_state(BATCH)).outputs)
        trained = [parameter for parameter in memory.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(outputs[-1].square().sum(), trained, materialize_grads=True, allow_unused=True)
        gradients.append(found)
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def same(memory: Memory, name: str, *ways: Callable[[Tensor, State], Unrolled]) -> None:
    results, gradients = [], []
    for way in ways:
        xs = MEMORIES[name].inputs(LENGTH, BATCH).requires_grad_()
        state = {key: value.clone().requires_grad_() for key, value in MEMORIES[name].used_state(memory).items()}
        parts = everything(way(xs, state))
        leaves = {"xs": xs, **state, **dict(memory.named_parameters())}
        found = torch.autograd.grad(
            weighted_sum(parts), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        results.append(parts)
        gradients.append(dict(zip(leaves, found, strict=True)))
    for index in range(1, len(results)):
        expect_same(results[index], results[0], "by segments")
        expect_same(gradients[index], gradients[0], "by segments")


def test_questions_go_with_their_segment() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"levels": (1,), "channels": (2,), "down_channels": (4,)}
    memory = make_memory("multigrid", input_size=(3, 3, 3), queries={"query": (2, 3, 3)}, **options).double()
    xs = torch.randn(LENGTH, BATCH, 3, 3, 3).double()
    queries = {"query": torch.randn(LENGTH, BATCH, 2, 3, 3).double().requires_grad_()}
    state = memory.initial_state(BATCH)
    results = [
        unroll(memory, xs, None, state, None, queries),
        unroll_by_segments(memory, xs, None, state, None, queries, segment=3),
        recorded(memory, xs, None, state, None, 3, queries),
    ]
    gradients = [torch.autograd.grad(weighted_sum(everything(result)), queries["query"])[0] for result in results]
    assert gradients[0].abs().sum() > 0
    for result, gradient in zip(results[1:], gradients[1:], strict=True):
        expect_same(everything(result), everything(results[0]), "by segments")
        torch.testing.assert_close(gradient, gradients[0])


@pytest.mark.parametrize("name", LONG)
def test_gradients_that_nobody_asked_for_do_not_disturb_the_others(name: str) -> None:
    """Frozen parameters, inputs and a state without gradients, a loss on some outputs only, `backward` into `.grad`."""
    memory = MEMORIES[name].build()
    frozen, *trained = memory.parameters()
    frozen.requires_grad_(False)
    xs = MEMORIES[name].inputs(LENGTH, BATCH)
    gradients = []
    for segment in (LENGTH, 2):
        memory.zero_grad()
        result = unroll_by_segments(memory, xs, None, memory.initial_state(BATCH), segment=segment)
        result.outputs[1:3].square().sum().backward()
        assert frozen.grad is None
        gradients.append([None if p.grad is None else p.grad.clone() for p in trained])
    for actual, expected in zip(*gradients, strict=True):
        if expected is None:
            assert actual is None or not actual.any()
        else:
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_a_segment_runs_again_in_the_precision_it_ran_in() -> None:
    memory = make_memory("gru", input_size=3, hidden_size=4)
    memory.fast = False
    seen = []
    handle = memory.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    xs = torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        recording = SegmentedRecording(memory, memory.initial_state(2), 1, 2)
        for x in xs:
            recording.step(x, None)
        span = recording.spans[0][0]
        recording.unrolled()
    with span.autocast():
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
    assert seen
    assert all(seen)
    handle.remove()


class Counting(Memory):
    """Counts its steps; its state is large, and a step keeps it."""

    output_size = 4

    def __init__(self, input_size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 0.5))
        self.taken = 0

    def initial_state(self, batch_size: int) -> State:
        return {"large": torch.zeros(batch_size, 1000)}

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        self.taken += 1
        large = (self.weight * state["large"] + x.sum(1, keepdim=True)).sin()
        return MemoryStep(large[:, :4], {"large": large}, {})


def test_every_step_but_those_of_the_last_segment_is_taken_twice() -> None:
    memory = Counting()
    result = unroll_by_segments(memory, torch.randn(20, 2, 3), None, memory.initial_state(2), segment=6)
    assert memory.taken == 20
    result.outputs.sum().backward()
    assert memory.taken == 20 + 18


def test_segments_keep_a_state_each() -> None:
    """64 steps in eights: the states before seven of them and the graph of one, instead of that of 64."""
    memory, xs = Counting(), torch.randn(64, 1, 3)

    def keeps(segment: int) -> int:
        return stored_bytes(lambda: unroll_by_segments(memory, xs, None, memory.initial_state(1), segment=segment))

    assert keeps(8) < 0.3 * keeps(64)

    def recording_keeps(segment: int) -> int:
        return stored_bytes(lambda: recorded(memory, xs, None, memory.initial_state(1), None, segment))

    assert recording_keeps(8) < 0.3 * keeps(64)


def test_without_gradients_nothing_is_taken_twice() -> None:
    memory = Counting()
    with torch.no_grad():
        Segments(memory, 2, 3).unroll(torch.randn(6, 1, 3), None, memory.initial_state(1))
    assert memory.taken == 6


def test_with_gradients_a_sequence_is_run_by_segments() -> None:
    """Six steps in twos: all but the last two are run again in the backward pass."""
    memory = Counting()
    result = Segments(memory, 2, 3).unroll(torch.randn(6, 1, 3), None, memory.initial_state(1))
    result.outputs.sum().backward()
    assert memory.taken == 6 + 4


# The rule


def test_a_setting_is_the_length_of_a_segment() -> None:
    memory = Counting()
    for setting, steps, expected in ((0, 100, 0), (10, 100, 10), (10, 10, 0), (10, 11, 10)):
        segments = Segments(memory, setting, 3)
        assert segments.length(steps, 64, recorded=False, expected_steps=1) == expected
        recording = segments.record(memory.initial_state(2), 1, steps, 2)
        assert isinstance(recording, SegmentedRecording) == bool(expected)


@pytest.mark.parametrize("recorded", [False, True])
def test_without_a_setting_it_is_what_would_be_kept_that_decides(
    monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    memory = Counting()
    segments = Segments(memory, None, 3)
    assert segments.length(8, 10**9, recorded, expected_steps=8) == 0
    assert memory.taken == 0, "a segment has eight steps or more: nothing to measure"
    each = segments.bytes_per_step(recorded, 8)
    assert 8_000 <= each <= 13_000  # two or three times 1,000 numbers, of 4 bytes, and little else
    taken = memory.taken
    monkeypatch.setattr(module, "AUTO_BYTES", 100 * 5 * each)
    assert segments.length(100, 5, recorded, expected_steps=8) == 0
    assert segments.length(100, 6, recorded, expected_steps=8) == max(8, round((100 * 4000 / each) ** 0.5 - 0.5))
    assert segments.length(4000, 6, recorded, expected_steps=8) == int((4000 * 4000 / each) ** 0.5)
    assert memory.taken == taken, "it is measured once"


@pytest.mark.parametrize("name", ["mnm-p", "ntm", "plastic", "stack-rnn", "kanerva++"])
def test_memory_that_is_allocated_at_once_is_seen(name: str) -> None:
    """A tape is as long as the expected steps, or longer; the first sequence of a memory also fills its caches."""
    segments = Segments(make_memory(name, input_size=3), None, 3)
    assert segments.bytes_per_step(True, 100) == pytest.approx(segments.bytes_per_step(False, 100), rel=0.3)


@pytest.mark.parametrize("name", ["mnm-g", "d-ntm"])
def test_it_is_the_form_that_trains_which_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """C loops store a fraction of what the equations do; a sequence would be cut for nothing."""
    if library(mnm_native.SOURCE, torch.float32) is None:
        pytest.skip("there is no C compiler here")
    with_loops = Segments(make_memory(name, input_size=3), None, 3).bytes_per_step(False, 100)
    monkeypatch.setenv("ENGRAM_NATIVE", "0")
    without = Segments(make_memory(name, input_size=3), None, 3).bytes_per_step(False, 100)
    assert with_loops < 0.4 * without


def test_a_memory_that_has_nothing_to_learn_stays_whole() -> None:
    memory = make_memory("identity", input_size=3)
    assert Segments(memory, None, 3).length(1000, 64, recorded=False, expected_steps=1) == 0


@every_memory
def test_what_a_step_keeps_can_be_found_for_every_memory(name: str) -> None:
    memory, case = MEMORIES[name].build(torch.float32), MEMORIES[name]
    segments = Segments(memory, None, case.input_size)
    assert segments.bytes_per_step(recorded=False, expected_steps=1) >= 1
    assert segments.bytes_per_step(recorded=True, expected_steps=8) >= 1


def test_what_is_wrong_is_named() -> None:
    memory = Counting()
    with pytest.raises(ValueError, match="bptt_segment is -1"):
        Segments(memory, -1, 3)
    with pytest.raises(ValueError, match="a segment has 0 steps"):
        unroll_by_segments(memory, torch.randn(2, 1, 3), None, memory.initial_state(1), segment=0)
    with pytest.raises(ValueError, match="a segment has 0 steps"):
        SegmentedRecording(memory, memory.initial_state(1), 1, 0)


@pytest.mark.parametrize("way", ["plain", "own", "segments", "recorded"])
def test_the_benchmark_runs_in_every_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    benchmark = importlib.import_module("sequence_memory")
    segment, run = benchmark.sequence(way, "gru", benchmark.Args(input_size=3), 20, 2)
    assert run(torch.randn(20, 2, 3)).outputs.shape[:2] == (20, 2)
    assert (segment > 0) == (way in ("segments", "recorded"))
