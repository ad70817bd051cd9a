"""A task that cannot be done without its masks: which actions are valid is seen nowhere else."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.tensor_env import Info, TensorEnv

CHOICES, VALID, LENGTH = 6, 2, 6


class Ledge(TensorEnv):
    """Some of several paths bear; they are drawn anew at every step, and only the mask says which.

    Observation: `Box` `[1]`: steps taken, over `LENGTH`. Action: `Discrete(6)`, or two of it (`parts=2`). Reward: i / 5
    for path i, a mean over the parts. Termination: after a path that does not bear, or after `LENGTH` steps. With
    `deadly=False` such a path pays nothing and all episodes are of one length. Best: the greatest path that bears.
    """

    state_names = ("valid", "age")
    metric_names = ("invalid",)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        parts: int = 1,
        deadly: bool = True,
        hide: bool = False,
        dtype: torch.dtype = torch.bool,
        device: Any = "cpu",
        render_mode: str | None = None,
    ) -> None:
        space = spaces.Discrete(CHOICES) if parts == 1 else spaces.MultiDiscrete([CHOICES] * parts)
        horizon = None if deadly else LENGTH
        super().__init__(num_envs, spaces.Box(0.0, 1.0, (1,)), space, device, horizon, render_mode)
        self.parts, self.hide, self.dtype, self.ignores_actions = parts, hide, dtype, not deadly

    def _draw(self) -> Tensor:
        noise = torch.rand(self.num_envs, self.parts, CHOICES, generator=self.generator, device=self.device)
        return noise >= noise.topk(VALID, -1).values[..., -1:]

    def _begin(self, where: Tensor | None) -> None:
        age = torch.zeros(self.num_envs, device=self.device)
        self.age = age if where is None else self.age * ~where
        self.valid = self._draw()

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, None]:
        chosen = action.view(self.num_envs, self.parts, 1).long()
        bears = self.valid.gather(2, chosen)[..., 0].all(1)
        self._measure(invalid=((~bears).float(), torch.ones_like(self.age)))
        self.age, self.valid = self.age + 1, self._draw()
        return chosen.float().mean((1, 2)) / (CHOICES - 1) * bears, ~bears | (self.age >= LENGTH), None

    def _observe(self) -> Tensor:
        return self.age[:, None] / LENGTH

    def _describe(self) -> Info:
        best = (self.valid * torch.arange(CHOICES, device=self.device)).argmax(-1)
        info = {"target": best[:, 0] if self.parts == 1 else best, "weight": torch.ones_like(self.age)}
        return info if self.hide else info | {"action_mask": self.valid.flatten(1).to(self.dtype)}


class HostLedge(gymnasium.Env[Any, Any]):
    """The same on the host, one copy; `tells` says how: by "info", by the "method" `action_masks`, or not at all."""

    observation_space = spaces.Box(0.0, 1.0, (1,))

    def __init__(self, tells: str = "method", start: int = 0) -> None:
        self.action_space = spaces.Discrete(CHOICES, start=start)
        self.tells = tells
        if tells == "method":
            self.action_masks = lambda: self.valid

    def _seen(self) -> tuple[Any, dict[str, Any]]:
        self.valid = np.zeros(CHOICES, np.int8)
        self.valid[self.np_random.choice(CHOICES, VALID, replace=False)] = 1
        info = {"action_mask": self.valid} if self.tells == "info" else {}
        return np.array([self.age / LENGTH], np.float32), info

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return self._seen()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        path = int(action) - int(self.action_space.start)
        bears = bool(self.valid[path])
        self.age += 1
        obs, info = self._seen()
        return obs, bears * path / (CHOICES - 1), not bears or self.age == LENGTH, False, info
