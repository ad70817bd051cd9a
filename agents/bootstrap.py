"""Values of the final observations of truncated episodes, from which their returns are bootstrapped."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.rollout import Rollout
from envs.tensor_env import Obs
from policies.memories.contract import State
from policies.memories.time.checkpointing import most_kept
from policies.policy import MemoryActorCriticPolicy

SHARE = 16
"""On a GPU, memories of final observations take up to this part of what a sequence may keep for its backward pass."""


class FinalValues:
    """Writes `rollout.final_values` where episodes were truncated.

    A final observation needs a step of the memory of its own, with the memory as the episode left it. Who was truncated
    is known on the device alone, so every environment takes that step. On a CPU it is taken immediately. On a GPU,
    where it would double the launches of a rollout, observations and memories of many steps are stored and processed as
    one batch.

    Args:
        policy: gives the values.
        rollout: is written to.
        most: steps that are taken as one batch; None: as many as there is room for on a GPU, 1 elsewhere.
    """

    def __init__(self, policy: MemoryActorCriticPolicy, rollout: Rollout, most: int | None = None) -> None:
        self.policy, self.rollout, self.most = policy, rollout, most
        self._first = self._count = 0
        self._room: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, t: int, obs: Obs, state: State) -> None:
        """The final observations of step `t` `[N, ...]`, if any, and the memory before them.

        `rollout.truncated[t]` is written already.
        """
        if self.most is None:
            self.most = self._affordable(state)
        if self.most == 1:
            self._write(slice(t, t + 1), self.policy.predict_values(obs, state))
            return
        if self._count and t != self._first + self._count:
            self.finish()
        if not self._count:
            self._first = t
        for name, value in self._named(obs, state).items():
            if name not in self._room:
                self._room[name] = value.new_empty(self.most, *value.shape)
            self._room[name][self._count] = value
        self._count += 1
        if self._count == self.most:
            self.finish()

    @torch.no_grad()
    def finish(self) -> None:
        """Write the values of what is still kept."""
        if not self._count:
            return
        rows = {name: room[: self._count].flatten(0, 1) for name, room in self._room.items()}
        state = {name.removeprefix("state/"): value for name, value in rows.items() if name.startswith("state/")}
        entries = {name.removeprefix("obs/"): value for name, value in rows.items() if name.startswith("obs/")}
        values = self.policy.predict_values(rows.get("obs", entries), state)
        self._write(slice(self._first, self._first + self._count), values)
        self._count = 0

    def _write(self, steps: slice, values: Tensor) -> None:
        truncated = self.rollout.truncated[steps]
        self.rollout.final_values[steps] = values.view(truncated.shape).masked_fill(~truncated, 0.0)

    def _affordable(self, state: State) -> int:
        device = self.rollout.truncated.device
        if device.type != "cuda":
            return 1
        held = sum(value.numel() * value.element_size() for value in state.values())
        return max(1, min(len(self.rollout.truncated), most_kept(device) // SHARE // max(held, 1)))

    @staticmethod
    def _named(obs: Obs, state: State) -> dict[str, Tensor]:
        entries = {f"obs/{name}": value for name, value in obs.items()} if isinstance(obs, dict) else {"obs": obs}
        return entries | {f"state/{name}": value for name, value in state.items()}
