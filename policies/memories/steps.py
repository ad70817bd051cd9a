"""Inputs and outputs of memories: states, steps and sequences, and functions on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]
"""Everything that persists between steps, by name; dimension 0 of each tensor is the batch."""

Queries = Mapping[str, Tensor]
"""Questions by name, each `[B, ...]`; in a sequence `[T, B, ...]`."""


class MemoryStep(NamedTuple):
    """The result of one step of a memory."""

    output: Tensor
    """Vector output, `[B, output_size]`."""
    state: State
    """The state after the step, with the same keys and shapes."""
    losses: dict[str, Tensor]
    """The memory's own training terms by name, each `[B]`; empty for most memories."""
    grid: Tensor | None = None
    """Map output `[B, C, H, W]`, if the memory has an `output_grid`."""


class Unrolled(NamedTuple):
    """The result of `T` steps of a memory."""

    outputs: Tensor
    """`[T, B, output_size]`."""
    state: State
    """The state after the last step."""
    losses: dict[str, Tensor]
    """Each `[T, B]`."""
    grids: Tensor | None = None
    """`[T, B, C, H, W]`, if the memory has an `output_grid`."""


def reset(state: State, starts: Tensor, initial: State) -> State:
    """`initial` where `starts` `[B]` (bool) is true, `state` elsewhere."""
    return {
        name: torch.where(starts.view(-1, *[1] * (value.dim() - 1)), initial[name], value)
        for name, value in state.items()
    }


def detach(state: State) -> State:
    """The same values without their graph."""
    return {name: value.detach() for name, value in state.items()}


def select(state: State, index: Tensor | slice) -> State:
    """The batch entries `index` of a state."""
    return {name: value[index] for name, value in state.items()}


def check_state(state: Any, expected: State, batch: int) -> None:
    """Checks a state that a user has passed to `predict`.

    Args:
        state: the state.
        expected: a state of this memory, of any number of environments.
        batch: number of environments of the observation.

    Raises:
        TypeError: it is not a dictionary of tensors.
        ValueError: it is of another memory, of other sizes or of another number of environments.
    """
    last = "what the last call of predict returned, or None"
    if not isinstance(state, dict):
        raise TypeError(f"state is of {type(state).__name__}, expected {last}")
    if state.keys() != expected.keys():
        raise ValueError(f"state has the entries {sorted(map(str, state))}, expected {sorted(expected)}: {last}")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"state[{name!r}] is of {type(value).__name__}, expected a tensor: {last}")
        found, wanted = tuple(value.shape), (batch, *expected[name].shape[1:])
        if found != wanted:
            if found[1:] == wanted[1:] and found:
                raise ValueError(f"state has {found[0]} environments, but the observation has {batch}")
            raise ValueError(f"state[{name!r}] has shape {found}, expected {wanted}: {last}")


def as_starts(episode_start: Any, batch: int, device: torch.device) -> Tensor:
    """The `episode_start` that a user has passed to `predict`, as bool `[B]`.

    Raises:
        ValueError: it is of another number of environments than `batch`.
    """
    starts = torch.as_tensor(np.asarray(episode_start), dtype=torch.bool, device=device).view(-1)
    if len(starts) != batch:
        raise ValueError(f"episode_start has {len(starts)} environments, but the observation has {batch}")
    return starts


def stack(steps: Sequence[MemoryStep]) -> Unrolled:
    """Combines steps to a sequence."""
    return Unrolled(
        torch.stack([step.output for step in steps]),
        steps[-1].state,
        {name: torch.stack([step.losses[name] for step in steps]) for name in steps[0].losses},
        None if steps[0].grid is None else torch.stack([step.grid for step in steps if step.grid is not None]),
    )


def join(parts: Sequence[Unrolled]) -> Unrolled:
    """Concatenates consecutive sequences."""
    if len(parts) == 1:
        return parts[0]
    grids = [part.grids for part in parts if part.grids is not None]
    return Unrolled(
        torch.cat([part.outputs for part in parts]),
        parts[-1].state,
        {name: torch.cat([part.losses[name] for part in parts]) for name in parts[0].losses},
        torch.cat(grids) if grids else None,
    )
