"""Controls that show whether the memory is used: it is frozen, reset, or exchanged with another episode's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from policies.memories.contract import MemoryStep, State
from policies.memories.steps import reset
from policies.memories.time.recording import Recording
from policies.policy import MemoryActorCriticPolicy, Obs

Control = Literal["frozen", "reset", "exchanged"]
CONTROLS = ("frozen", "exchanged", "reset")

CONTROLLER_STATE = frozenset({"hidden", "cell", "read", "read_value", "read_vectors", "seed", "places"})
"""Names of state entries that belong to a controller or to the previous step, not to the memory's contents."""


def memory_entries(state: State) -> list[str]:
    """The state entries that hold memory contents; all entries if there are only controller states."""
    return sorted(set(state) - CONTROLLER_STATE) or sorted(state)


@contextmanager
def controlled(
    policy: MemoryActorCriticPolicy, control: Control, entries: Sequence[str] | None = None, steps: int | None = None
) -> Iterator[None]:
    """Context manager in which `policy.remember` uses an altered memory.

    "frozen": from step `steps` of an episode on, the entries no longer change; if frozen from the first step, only the
    controller remembers. "reset": the whole state is reset every `steps` steps. "exchanged": each environment reads the
    memory contents of another environment, written from that one's observations; controller state, observations and
    actions are its own.

    Args:
        policy: the agent's policy.
        control: one of the above.
        entries: names of the state entries that are frozen or exchanged; None: `memory_entries`.
        steps: for "frozen" at least 0 (None: 0), for "reset" at least 1 (None: 1); None for "exchanged".

    Raises:
        ValueError: the control, its steps or an entry is unknown, or the memory has no state.
    """
    state = policy.initial_state(1)
    if control not in CONTROLS:
        raise ValueError(f"the control is {control!r}; it must be one of {', '.join(CONTROLS)}")
    if not state:
        raise ValueError(f"{policy.memory_name} has no state that could be frozen, reset or exchanged")
    entries = memory_entries(state) if entries is None else list(entries)
    if missing := sorted(set(entries) - set(state)):
        raise ValueError(f"{policy.memory_name} has no state {', '.join(missing)}; it has {', '.join(state)}")
    least = 1 if control == "reset" else 0
    if steps is not None and (steps < least or control == "exchanged"):
        raise ValueError(f"steps is {steps} for the control {control!r}; expected at least {least}, none for exchanged")
    patched: Any = policy
    patched.remember = _Altered(policy, control, entries, least if steps is None else steps)
    try:
        yield
    finally:
        del patched.remember


class _Altered:
    """`policy.remember` under a control. Counts the steps of each environment's episode on the device."""

    def __init__(self, policy: MemoryActorCriticPolicy, control: Control, entries: Sequence[str], steps: int) -> None:
        self.policy, self.control, self.entries, self.steps = policy, control, entries, steps
        self.remember = policy.remember
        self.since: Tensor | None = None

    def __call__(
        self, obs: Obs, state: State, starts: Tensor | None = None, recording: Recording | None = None
    ) -> MemoryStep:
        batch = len(next(iter(state.values())))
        initial = self.policy.initial_state(batch)
        since = torch.zeros(batch, dtype=torch.int64, device=self.policy.device) if self.since is None else self.since
        if starts is not None:
            state, since = reset(state, starts, initial), since.masked_fill(starts, 0)
        self.since = since + 1
        if self.control == "reset":
            return self.remember(obs, reset(state, since % self.steps == 0, initial))
        contents = {name: state[name] for name in self.entries}
        if self.control == "frozen":
            step = self.remember(obs, state)
            written = {name: step.state[name] for name in self.entries}
            return step._replace(state={**step.state, **reset(written, since >= self.steps, contents)})
        written = self.remember(obs, state).state
        step = self.remember(obs, {**state, **{name: value.roll(1, 0) for name, value in contents.items()}})
        return step._replace(state={**step.state, **{name: written[name] for name in self.entries}})
