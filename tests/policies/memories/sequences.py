"""What tests of sequences share: a sequence unrolled or recorded, all its gradients, and comparisons of both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from policies.memories.contract import Memory, State, Unrolled


def starts_at(resets: Sequence[int] | None, length: int, batch: int) -> Tensor | None:
    """Episodes that start at the steps `resets`, each in the next environment: bool `[T, B]`."""
    if resets is None:
        return None
    starts = torch.zeros(length, batch, dtype=torch.bool)
    starts[list(resets), [index % batch for index in range(len(resets))]] = True
    return starts


def through(
    memory: Memory,
    xs: Tensor,
    starts: Tensor | None,
    state: State,
    recorded: bool = False,
    resets: Collection[int] | None = None,
    room: int = 4,
) -> Unrolled:
    """A sequence by `unroll`, or recorded step by step as A2C does; `resets` as `unroll` takes them."""
    if not recorded:
        return memory.unroll(xs, starts, state, None if resets is None else list(resets))
    recording = memory.record(state, room)
    for t, x in enumerate(xs):
        begins = starts is not None and (bool(starts[t].any()) if resets is None else t in resets)
        recording.step(x, starts[t] if begins and starts is not None else None)
    return recording.unrolled()


def trained_by(
    memory: Memory, xs: Tensor, starts: Tensor | None, state: State, recorded: bool = False, room: int = 4
) -> dict[str, Tensor]:
    """All that a sequence gives, and the gradients of everything trained and of what began it.

    The gradients are those of one number that depends on outputs, losses, grids and the last state.
    """
    memory.zero_grad()
    xs = xs.clone().requires_grad_()
    state = {name: value.clone().requires_grad_() for name, value in state.items()}
    result = through(memory, xs, starts, state, recorded, room=room)
    ends = torch.stack([(result.state[name].sin() * (1 + i)).sum() for i, name in enumerate(sorted(state))]).sum()
    terms = [result.outputs.square().sum() + ends, *(loss.sum() for loss in result.losses.values())]
    terms += [] if result.grids is None else [result.grids.square().sum()]
    torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
    wanted = {"inputs": xs, **{f"first {name}": value for name, value in state.items()}}
    wanted |= dict(memory.named_parameters())
    none = {name: torch.zeros_like(value) for name, value in wanted.items()}  # where nothing starts
    found = {f"gradient of {n}": (none[n] if p.grad is None else p.grad.clone()) for n, p in wanted.items()}
    return {"outputs": result.outputs.detach(), **found, **{n: v.detach() for n, v in result.state.items()}}


def begun(memory: Memory, batch: int) -> State:
    """A state in the middle of an episode."""
    return {name: torch.randn(value.shape, dtype=value.dtype) for name, value in memory.initial_state(batch).items()}


def trained_both_ways(
    memory: Memory, xs: Tensor, starts: Tensor | None, state: State, threads: int, room: int = 4
) -> list[dict[str, Tensor]]:
    """What `trained_by` finds unrolled, then recorded step by step, with this number of threads."""
    torch.set_num_threads(threads)
    try:
        return [trained_by(memory, xs, starts, state, recorded, room) for recorded in (False, True)]
    finally:
        torch.set_num_threads(1)


def expect_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float, atol: float) -> None:
    """Every tensor of `expected` is in `found`, up to rounding."""
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=atol, msg=lambda text, key=name: f"{key}: {text}"
        )


def expect_same_with_gradients(
    ours: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    paper: Mapping[str, Tensor],
    leaves: Mapping[str, Tensor],
    counted: Callable[[dict[str, Tensor]], Any] = lambda gradients: None,
) -> None:
    """Results are the same, and so are the gradients of a weighted sum of each; in float64.

    Args:
        ours: results by name, of one way or of several.
        paper: what each of them must be.
        leaves: what all are differentiated by.
        counted: called with each set of gradients, to take out what means nothing.
    """
    ways = [ours] if isinstance(ours, Mapping) else ours
    weights = {key: torch.randn(value.shape).double() for key, value in ways[0].items()}
    gradients = []
    for parts in (paper, *ways):
        total = torch.stack([(weights[key] * parts[key]).sum() for key in weights]).sum()
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        gradients.append(dict(zip(leaves, found, strict=True)))
        counted(gradients[-1])
    for parts, gradient in zip(ways, gradients[1:], strict=True):
        expect_close(parts, paper, 1e-9, 1e-10)
        expect_close(gradient, gradients[0], 1e-9, 1e-10)


def expect_acting_is_the_equations(memory: Memory, xs: Tensor, state: State) -> None:
    """Steps without gradients are those of the equations, and nothing that the caller holds is written to."""
    for x in xs:
        before = {name: value.clone() for name, value in state.items()}
        with torch.no_grad():
            step = memory.step(x, state)
        for name, value in before.items():
            assert torch.equal(state[name], value), f"{name} was written to"
        expected = memory(x, state)
        torch.testing.assert_close(step.output, expected.output, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(step.state, expected.state, rtol=1e-9, atol=1e-11)
        state = step.state
