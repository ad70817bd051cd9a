"""Environments that show the time: six steps in an episode, each worth 1."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from envs.tensor_env import TensorEnv


class Clock(gym.Env[Any, Any]):
    """Shows how often it was reset and the step of the episode, of which there are six; every step is worth 1."""

    observation_space = gym.spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    resets = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.resets, self.time = self.resets + 1, 0
        return np.array([self.resets, 0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.array([self.resets, self.time], np.float32), 1.0, self.time == 6, False, {}


class TensorClock(TensorEnv):
    """The same on the device."""

    state_names = ("time", "resets")

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, Clock.observation_space, Clock.action_space)
        self.resets, self.time = torch.zeros(num_envs), torch.zeros(num_envs)

    def _begin(self, where: torch.Tensor | None) -> None:
        where = torch.ones(self.num_envs, dtype=torch.bool) if where is None else where
        self.resets, self.time = self.resets + where, self.time * ~where

    def _advance(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        self.time = self.time + 1
        return torch.ones(self.num_envs), self.time == 6, None

    def _observe(self) -> torch.Tensor:
        return torch.stack([self.resets, self.time], 1)
