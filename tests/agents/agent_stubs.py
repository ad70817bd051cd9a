"""An environment that plays back a script, and a learner stopped after a rollout."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from agents import MemoryOnPolicyAlgorithm
from agents.rollout import Rollout
from envs.tensor_env import TensorEnv
from policies.memories import built_in, memory_class

# Arguments that make a memory small; one that is not here keeps its defaults.
SMALL = {
    "gru": {"hidden_size": 16},
    "lstm": {"hidden_size": 16},
    "mnm-p": {"hidden_size": 16, "key_size": 8, "value_size": 8, "memory_units": 8, "heads": 2},
    "mnm-g": {"hidden_size": 16, "key_size": 8, "value_size": 8, "memory_units": 8, "heads": 2},
}
VECTOR_MEMORIES = [name for name in built_in() if memory_class(name).input_kind == "vector"]


class Script(TensorEnv):
    """Plays back rewards and ends, `[T, N]`, over and over.

    The observation of copy n is the step within its episode, from 0 up, plus 1000 n.
    """

    truncates = True
    state_names = ("position",)

    def __init__(self, rewards: Tensor, terminated: Tensor, truncated: Tensor) -> None:
        super().__init__(rewards.shape[1], spaces.Box(-1e9, 1e9, (1,)), spaces.Discrete(2))
        self.rewards, self.terminated, self.truncated = rewards, terminated, truncated
        self.time = 0

    def _begin(self, where: Tensor | None) -> None:
        if where is None:
            self.time = 0
            self.position = torch.zeros(self.num_envs)
        else:
            self.position = self.position * ~where

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = self.time % len(self.rewards)
        self.time += 1
        self.position = self.position + 1
        return self.rewards[t], self.terminated[t], self.truncated[t]

    def _observe(self) -> Tensor:
        return (self.position + 1000 * torch.arange(self.num_envs))[:, None]


def script(rewards: Any, terminated: Any = (), truncated: Any = ()) -> Script:
    """`rewards` `[T][N]`; `terminated` and `truncated` list the (t, n) at which they are true."""
    values = torch.tensor(rewards, dtype=torch.float32)
    ends = []
    for places in (terminated, truncated):
        mask = torch.zeros(values.shape, dtype=torch.bool)
        for t, n in places:
            mask[t, n] = True
        ends.append(mask)
    return Script(values, *ends)


def collect(model: MemoryOnPolicyAlgorithm) -> Rollout:
    """One more rollout, without the update that follows it."""
    _, callback = model._setup_learn(10**9, None, reset_num_timesteps=False)
    callback.on_training_start(locals(), globals())
    assert model.collect_rollouts(model.env, callback, model.rollout, model.n_steps)
    return model.rollout


def set_critic(model: MemoryOnPolicyAlgorithm, weights: list[float], bias: float) -> None:
    """A critic known by heart: `weights` on the memory's output, plus `bias`."""
    with torch.no_grad():
        model.policy.value_net.weight.copy_(torch.tensor([weights]))
        model.policy.value_net.bias.fill_(bias)
