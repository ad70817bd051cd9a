"""What every memory must do over time, over each row of `CASES` in `test_memory_conformance.py`."""

from __future__ import annotations

import pytest
import torch
from conformance_helpers import BATCH, LENGTH, assert_same, everything, weigh
from hypothesis import given, settings
from hypothesis import strategies as st
from test_memory_conformance import build, every_memory, inputs, used_state
from torch import Tensor

from policies.memories.base import State, Unrolled, select, unroll


@every_memory
@pytest.mark.parametrize("resets", ["none start", "unknown", "exact", "every step"])
def test_unroll_is_stepping(name: str, resets: str) -> None:
    """The memory's own `unroll` and `record`, the plain function and a hand-written loop agree, also backward."""
    memory = build(name)
    starts = None
    steps: list[int] | None = []
    if resets != "none start":
        starts = torch.zeros(LENGTH, BATCH, dtype=torch.bool)
        starts[0, 1] = starts[4, 0] = starts[4, 1] = True
        steps = {"unknown": None, "exact": [0, 4], "every step": list(range(LENGTH))}[resets]

    def by_hand(xs: Tensor, state: State) -> dict[str, Tensor]:
        outputs, losses, grids = [], [], []
        for t, x in enumerate(xs):
            if starts is not None:
                rows = [
                    memory.initial_state(1) if starts[t, b] else select(state, slice(b, b + 1)) for b in range(BATCH)
                ]
                state = {key: torch.cat([row[key] for row in rows]) for key in state}
            step = memory(x, state)
            outputs.append(step.output)
            losses.append(step.losses)
            grids.append(step.grid)
            state = step.state
        kinds = {key: torch.stack([loss[key] for loss in losses]) for key in losses[0]}
        maps = None if grids[0] is None else torch.stack(grids)
        return everything(Unrolled(torch.stack(outputs), state, kinds, maps))

    def recorded(xs: Tensor, state: State, room: int) -> dict[str, Tensor]:
        recording = memory.record(state, room)
        acted_on = []
        for t, x in enumerate(xs):
            may_start = starts is not None and (steps is None or t in steps)
            acted_on.append(recording.step(x, starts[t] if may_start and starts is not None else None).output.detach())
        result = recording.unrolled()
        torch.testing.assert_close(torch.stack(acted_on), result.outputs.detach(), rtol=1e-9, atol=1e-11)
        return everything(result)

    results, gradients = [], []
    for way in (
        by_hand,
        lambda xs, state: recorded(xs, state, 1),
        lambda xs, state: recorded(xs, state, LENGTH - 2),  # less room than steps
        lambda xs, state: recorded(xs, state, 2 * LENGTH),
        lambda xs, state: everything(unroll(memory, xs, starts, state, steps)),
        lambda xs, state: everything(memory.unroll(xs, starts, state, steps)),
    ):
        xs = inputs(name, LENGTH, BATCH).requires_grad_()
        state = {key: value.clone().requires_grad_() for key, value in used_state(memory, name).items()}
        parts = way(xs, state)
        leaves = {"xs": xs, **state, **dict(memory.named_parameters())}
        found = torch.autograd.grad(weigh(parts), list(leaves.values()), allow_unused=True, materialize_grads=True)
        results.append(parts)
        gradients.append(dict(zip(leaves, found, strict=True)))
    for index in range(1, len(results)):
        assert_same(results[index], results[0])
        assert_same(gradients[index], gradients[0])


@every_memory
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_packed_episodes_are_separate_episodes(name: str, data: st.DataObject) -> None:
    """Whatever was before it in its row, an episode gives what it gives alone."""
    length, batch = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 3))
    row = st.lists(st.booleans(), min_size=batch, max_size=batch)
    starts = torch.tensor(data.draw(st.lists(row, min_size=length, max_size=length)))
    memory, xs = build(name), inputs(name, length, batch)
    state = used_state(memory, name, batch)
    with torch.no_grad():
        packed = memory.unroll(xs, starts, state)
        for b in range(batch):
            begins = sorted({0, *starts[:, b].nonzero().flatten().tolist()})
            for begin, end in zip(begins, [*begins[1:], length], strict=True):
                alone = memory.initial_state(1) if starts[begin, b] else select(state, slice(b, b + 1))
                for t in range(begin, end):
                    step = memory(xs[t, b : b + 1], alone)
                    alone = step.state
                    torch.testing.assert_close(packed.outputs[t, b], step.output[0])
                    for key, loss in step.losses.items():
                        torch.testing.assert_close(packed.losses[key][t, b], loss[0])
            for key, value in alone.items():
                torch.testing.assert_close(packed.state[key][b], value[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@every_memory
def test_on_an_accelerator_it_is_the_same_and_never_waits(name: str) -> None:
    memory = build(name)
    xs, starts = inputs(name, LENGTH, BATCH), torch.zeros(LENGTH, BATCH, dtype=torch.bool)
    starts[[0, 4], 1] = True
    expected = memory.unroll(xs, starts, memory.initial_state(BATCH))
    memory, xs, starts = memory.cuda(), xs.cuda(), starts.cuda()
    memory(xs[0], memory.initial_state(BATCH))  # what libraries do on first use does not count
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepped = unroll(memory, xs, starts, memory.initial_state(BATCH), [0, 4])
        result = memory.unroll(xs, starts, memory.initial_state(BATCH), [0, 4])
        if list(memory.parameters()):
            result.outputs.square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for way in (stepped, result):
        assert_same({key: value.cpu() for key, value in everything(way).items()}, everything(expected))
