"""Observations copied on receipt, for environments that write into one array again and again."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv


class CopyObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Hands out copies of observations: the reset after an episode must not write over its last one.

    What is set on it is set on the environment within, as if it were not there.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return _copied(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return _copied(obs), reward, terminated, truncated, info

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "env" or name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self.env, name, value)


def copy_observations(env: VectorEnv[Any, Any, Any] | VecEnv) -> None:
    """Put `CopyObservation` around the single environments of a batch that runs in this process."""
    batch = env.unwrapped
    if isinstance(batch, (SyncVectorEnv, DummyVecEnv)):
        around: Any = [
            CopyObservation(single)
            if isinstance(single, gym.Env) and not isinstance(single, CopyObservation)
            else single
            for single in batch.envs
        ]
        batch.envs = around


def _copied(obs: Any) -> Any:
    return obs.copy() if isinstance(obs, np.ndarray) else copy.deepcopy(obs)
