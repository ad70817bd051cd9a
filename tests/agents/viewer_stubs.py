"""Sessions for the tests of pictures and window, and an environment with any spaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents import make_env
from agents.view.session import Session
from envs.tensor_env import TensorEnv
from policies.policy import MemoryActorCriticPolicy

MAZE = "Engram/InvisibleGoalMaze-v0"


def policy_for(env: TensorEnv, memory: str = "gru") -> MemoryActorCriticPolicy:
    kwargs = {"memory": memory, "memory_kwargs": {} if memory == "identity" else {"hidden_size": 12}}
    return MemoryActorCriticPolicy(env.single_observation_space, env.single_action_space, lambda _: 1e-3, **kwargs)


def session_of(env_id: str = MAZE, memory: str | None = "gru", **kwargs: Any) -> Session:
    torch.manual_seed(0)
    env = make_env(env_id, 1, render_mode="rgb_array", **kwargs)
    return Session(env, None if memory is None else policy_for(env, memory), env_id, "a test", seed=0)


class Anything(TensorEnv):
    """Any observation, any action, no picture; episodes of three steps."""

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        super().__init__(1, observation, action, horizon=3)
        self.actions: list[Tensor] = []

    def _begin(self, where: Tensor | None) -> None: ...

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        self.actions.append(action)
        return torch.ones(1), None, None

    def _observe(self) -> Any:
        def sample(space: spaces.Space[Any]) -> Any:
            if isinstance(space, spaces.Dict):
                return {key: sample(part) for key, part in space.items()}
            return torch.as_tensor(np.asarray(space.sample()))[None]

        return sample(self.single_observation_space)
