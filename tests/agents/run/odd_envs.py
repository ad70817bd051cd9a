"""Environments of other people that misbehave, each in a way of its own after some steps."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

WAYS = ("value", "key", "tuple", "shape", "endless", "reset", "init", "disk", "reward")
STEPS = 6


class Odd(gymnasium.Env[Any, Any]):
    """Ends after 4 steps, unless its way is another."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, way: str = "good") -> None:
        self.way, self.steps, self.in_all = way, 0, 0
        if way == "init":
            raise RuntimeError("no licence")

    def _observe(self) -> np.ndarray[Any, Any]:
        return np.zeros(3 if self.way == "shape" and self.in_all >= STEPS else 2, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe() if self.way == "reset" else (self._observe(), {})

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.in_all += 1
        late = self.in_all >= STEPS
        if late and self.way == "value":
            raise ValueError("bad joint\nstate")
        if late and self.way == "key":
            self._deeper()
        if late and self.way == "disk":
            raise OSError(28, "No space left on device")
        if late and self.way == "tuple":
            return self._observe(), 0.0, False, {}
        reward: Any = [1.0, 2.0] if late and self.way == "reward" else 1.0
        return self._observe(), reward, self.steps == 4 and self.way != "endless", False, {}

    def _deeper(self) -> None:
        raise KeyError("joint 3")


gymnasium.register("Odd-v0", Odd)
