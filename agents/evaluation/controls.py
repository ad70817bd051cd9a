"""Memory ablations: an agent plays with an empty memory, or with the memory of another episode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from policies.memories.contract import MemoryStep, State
from policies.memories.steps import reset
from policies.memories.time.recording import Recording
from policies.policy import MemoryActorCriticPolicy, Obs

Control = Literal["frozen", "exchanged"]
CONTROLS = ("frozen", "exchanged")

WORKING = frozenset({"hidden", "cell", "read", "read_value", "read_vectors", "seed", "places"})
"""State entries of a controller or of the previous step; they are not memory contents."""


def memory_entries(state: State) -> list[str]:
    """The state entries that hold memory contents; all entries if there are only controller states."""
    return sorted(set(state) - WORKING) or sorted(state)


@contextmanager
def controlled(
    policy: MemoryActorCriticPolicy, control: Control, entries: Sequence[str] | None = None
) -> Iterator[None]:
    """Context manager in which `policy.remember` reads an ablated memory.

    "frozen": the entries keep their initial values, so that only the controller remembers. "exchanged": each
    environment reads the memory of another environment at the same step; controller, actions and observations stay its
    own.

    Args:
        policy: of the agent.
        control: "frozen" or "exchanged".
        entries: state entries to ablate; None: `memory_entries`.

    Raises:
        ValueError: the control or an entry is unknown, or the memory has no state.
    """
    known = policy.initial_state(1)
    if control not in CONTROLS:
        raise ValueError(f"the control is {control!r}; it must be one of {', '.join(CONTROLS)}")
    if not known:
        raise ValueError(f"{policy.memory_name} has no state that could be frozen or exchanged")
    chosen = list(entries) if entries is not None else memory_entries(known)
    if missing := sorted(set(chosen) - set(known)):
        raise ValueError(f"{policy.memory_name} has no state {', '.join(missing)}; it has {', '.join(known)}")
    remember = policy.remember

    def other(
        obs: Obs, state: State, starts: torch.Tensor | None = None, recording: Recording | None = None
    ) -> MemoryStep:
        batch = len(next(iter(state.values())))
        initial = policy.initial_state(batch)
        if starts is not None:
            state = reset(state, starts, initial)
        if control == "frozen":
            step = remember(obs, state)
            return step._replace(state={**step.state, **{name: initial[name] for name in chosen}})
        written = remember(obs, state).state
        step = remember(obs, {**state, **{name: state[name].roll(1, 0) for name in chosen}})
        return step._replace(state={**step.state, **{name: written[name] for name in chosen}})

    patched: Any = policy
    patched.remember = other
    try:
        yield
    finally:
        del patched.remember
