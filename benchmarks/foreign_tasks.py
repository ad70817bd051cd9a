"""Two third-party tasks that need a memory, for `--env benchmarks.foreign_tasks:ID`.

`HiddenVelocityCartPole-v1` is Gymnasium's CartPole with both velocities left out of the observation. `FlatMemoryS7-v0`
is MiniGrid's `MemoryS7`, with its image of 7 × 7 × 3 symbols as a vector in 0..1, without direction and mission.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation


def hidden_velocity(**kwargs: Any) -> gym.Env[Any, Any]:
    """CartPole that shows the cart's position and the pole's angle."""
    env = gym.make("CartPole-v1", **kwargs)
    shown = [0, 2]
    assert isinstance(env.observation_space, spaces.Box)
    space = spaces.Box(env.observation_space.low[shown], env.observation_space.high[shown], dtype=np.float32)
    return TransformObservation(env, lambda obs: obs[shown], space)


def flat_memory(**kwargs: Any) -> gym.Env[Any, Any]:
    """MiniGrid's MemoryS7 as a vector of 147 numbers."""
    env = gym.make("minigrid:MiniGrid-MemoryS7-v0", **kwargs)
    space = spaces.Box(0.0, 1.0, (7 * 7 * 3,), np.float32)
    return TransformObservation(env, lambda obs: obs["image"].ravel().astype(np.float32) / 10, space)


for _name, _entry in {"HiddenVelocityCartPole-v1": hidden_velocity, "FlatMemoryS7-v0": flat_memory}.items():
    if _name not in gym.registry:
        gym.register(_name, entry_point=_entry)
