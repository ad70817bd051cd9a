"""`LearnerState`: what a learner carries from one step to the next, and from one rollout to the next."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from envs.tensor_env import Obs
from policies.memories.steps import State, detach


@dataclass
class LearnerState:
    """Observation, memory state and reset signal of `N` environments, on the device."""

    obs: Obs
    """The current observation `[N, ...]`, on which the agent has not acted yet."""
    memory: State
    """The memory's state before it reads `obs`; not yet reset where `starts`."""
    starts: Tensor
    """Bool `[N]`: true where `obs` is the first observation of its episode."""
    may_start: bool
    """False if the host knows that no entry of `starts` is true."""

    @property
    def resets(self) -> Tensor | None:
        """`starts`; None if no entry can be true."""
        return self.starts if self.may_start else None

    def detach(self) -> None:
        """Drops the graph of the memory's state."""
        self.memory = detach(self.memory)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, by their names in a checkpoint."""
        entries = self.obs if isinstance(self.obs, dict) else {"": self.obs}
        observations = {f"run/obs/{name}": value for name, value in entries.items()}
        memory = {f"memory/{name}": value for name, value in detach(self.memory).items()}
        return {**observations, **memory, "run/starts": self.starts}
