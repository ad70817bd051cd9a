"""Conformance checks of sequences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from policies.memories.contract import Memory, State, Unrolled
from policies.memories.steps import select
from policies.memories.time.unroll import unroll
from policies.testing.case import BATCH, LENGTH, MemoryCase, differentiable, everything, expect, expect_same

RESETS: dict[str, list[int] | None] = {
    "where none starts": [],
    "at unknown steps": None,
    "at known steps": [0, 4],
    "perhaps at every step": list(range(LENGTH)),
}


def weighted_sum(parts: dict[str, Tensor]) -> Tensor:
    """A weighted sum of all entries that can have a gradient, with a different weight for each."""
    generator = torch.Generator().manual_seed(3)
    numbers = [part for part in parts.values() if differentiable(part)]
    terms = [(part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum() for part in numbers]
    return torch.stack(terms).sum()


def reference_loop(memory: Memory, xs: Tensor, state: State, starts: Tensor | None) -> dict[str, Tensor]:
    """Reference loop: a row that starts an episode gets the initial state."""
    outputs, losses, grids = [], [], []
    for t, x in enumerate(xs):
        if starts is not None:
            rows = [memory.initial_state(1) if starts[t, b] else select(state, slice(b, b + 1)) for b in range(len(x))]
            state = {key: torch.cat([row[key] for row in rows]) for key in state}
        step = memory(x, state)
        outputs.append(step.output)
        losses.append(step.losses)
        grids.append(step.grid)
        state = step.state
    kinds = {key: torch.stack([loss[key] for loss in losses]) for key in losses[0]}
    maps = None if grids[0] is None else torch.stack(grids)
    return everything(Unrolled(torch.stack(outputs), state, kinds, maps))


def recorded(
    memory: Memory, xs: Tensor, state: State, starts: Tensor | None, steps: list[int] | None, expected_steps: int
) -> dict[str, Tensor]:
    """By `Memory.record`, which acts step by step and is differentiated later."""
    recording = memory.record(state, expected_steps)
    acting_outputs = []
    for t, x in enumerate(xs):
        may_start = starts is not None and (steps is None or t in steps)
        step = recording.step(x, starts[t] if may_start and starts is not None else None)
        acting_outputs.append(step.output.detach())
    result = recording.unrolled()
    acted, unrolled = {"outputs": torch.stack(acting_outputs)}, {"outputs": result.outputs.detach()}
    expect_same(acted, unrolled, "record: steps and their sequence")
    return everything(result)


def unroll_equals_steps(case: MemoryCase, resets: str) -> None:
    """The methods `step`, `unroll` and `record`, the function `unroll` and a loop over steps agree, also backward."""
    memory, steps = case.build(), RESETS[resets]
    starts = None
    if steps != []:
        starts = torch.zeros(LENGTH, BATCH, dtype=torch.bool)
        starts[0, 1] = starts[4, 0] = starts[4, 1] = True
    ways: dict[str, Callable[[Tensor, State], dict[str, Tensor]]] = {
        "a loop over steps": lambda xs, state: reference_loop(memory, xs, state, starts),
        "record": lambda xs, state: recorded(memory, xs, state, starts, steps, 1),
        "record with too few expected steps": lambda xs, state: recorded(memory, xs, state, starts, steps, LENGTH - 2),
        "record with more expected steps": lambda xs, state: recorded(memory, xs, state, starts, steps, 2 * LENGTH),
        "the function unroll": lambda xs, state: everything(unroll(memory, xs, starts, state, steps)),
        "the method step": lambda xs, state: everything(unroll(memory, xs, starts, state, steps, step=memory.step)),
        "the method unroll": lambda xs, state: everything(memory.unroll(xs, starts, state, steps)),
        "unroll of transposed inputs": lambda xs, state: everything(
            memory.unroll(xs.transpose(0, 1).contiguous().transpose(0, 1), starts, state, steps)
        ),
    }
    results, gradients = {}, {}
    for name, way in ways.items():
        xs = case.inputs(LENGTH, BATCH).requires_grad_()
        state = {key: value.clone() for key, value in case.used_state(memory).items()}
        inputs = {key: value.requires_grad_() for key, value in state.items() if differentiable(value)}
        results[name] = way(xs, state)
        leaves = {"xs": xs, **inputs, **dict(memory.named_parameters())}
        found = torch.autograd.grad(
            weighted_sum(results[name]), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        gradients[name] = dict(zip(leaves, found, strict=True))
    first = next(iter(ways))
    for name in ways:
        what = f"{name} and {first}, with resets {resets}"
        expect_same(results[name], results[first], what)
        expect_same(gradients[name], gradients[first], f"gradients of {what}")


def check_packed(case: MemoryCase, starts: Tensor) -> None:
    """An episode's results do not depend on earlier episodes in its row; `starts` is bool `[T, B]`."""
    (length, batch), memory = starts.shape, case.build()
    xs, state = case.inputs(length, batch), case.used_state(memory, batch)
    with torch.no_grad():
        packed = everything(memory.unroll(xs, starts, state))
        for b in range(batch):
            alone = reference_loop(memory, xs[:, b : b + 1], select(state, slice(b, b + 1)), starts[:, b : b + 1])
            for key, value in alone.items():
                found = packed[key][b : b + 1] if key.startswith("state ") else packed[key][:, b : b + 1]
                try:
                    torch.testing.assert_close(found, value)
                except AssertionError as error:
                    why = " ".join(str(error).split())
                    row = f"row {b}, whose episodes start at {starts[:, b].nonzero().flatten().tolist()},"
                    expect(False, f"{key} of {row} differs from its result alone: {why}")


def packed_episodes_are_separate_episodes(case: MemoryCase) -> None:
    generator = torch.Generator().manual_seed(11)
    for length, batch in ((1, 1), (2, 3), (5, 2), (7, 3)):
        for share in (0.0, 0.3, 1.0):
            check_packed(case, torch.rand(length, batch, generator=generator) < share)


TIME_CHECKS: dict[str, Any] = {
    f"unroll_equals_steps_with_resets_{name.replace(' ', '_')}": partial(unroll_equals_steps, resets=name)
    for name in RESETS
} | {"packed_episodes_are_separate_episodes": packed_episodes_are_separate_episodes}
