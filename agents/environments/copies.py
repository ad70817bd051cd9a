"""Checks the return values of host environments against Gymnasium's API, and copies their observations."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv


class ContractError(Exception):
    """An environment's `step` or `reset` violates Gymnasium's API; the message says how."""


class CopyObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Copies observations, because some environments reuse one array for all steps.

    Raises:
        ContractError: `reset` or `step` returns the wrong number of values, an observation of another shape, a reward
            that is not a number, an end that is not a bool, or an `info` that is not a dictionary.

    Attributes set on the wrapper are set on the wrapped environment.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        given: Any = self.env.reset(seed=seed, options=options)
        if not isinstance(given, tuple) or len(given) != 2:
            raise ContractError(f"reset gave {_shown(given)}, expected an observation and a dictionary")
        obs, info = given
        self._check("reset", obs, info)
        return _copied(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        given: Any = self.env.step(action)
        if not isinstance(given, tuple) or len(given) != 5:
            expected = "5: observation, reward, terminated, truncated, info"
            raise ContractError(f"step gave {_shown(given)}, expected {expected}")
        obs, reward, terminated, truncated, info = given
        self._check("step", obs, info)
        if type(reward) is not float and not isinstance(reward, (np.floating, np.integer)):
            reward = _number(reward)
        for name, end in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(end, (bool, np.bool_, int, np.integer)) and np.shape(end) != ():
                raise ContractError(f"step gave {_shown(end)} as {name}, expected true or false")
        return _copied(obs), reward, terminated, truncated, info

    def _check(self, where: str, obs: Any, info: Any) -> None:
        space = self.env.observation_space
        if isinstance(space, gym.spaces.Box) and np.shape(obs) != space.shape:
            found = f"an observation of shape {np.shape(obs)}" if np.shape(obs) else f"{_shown(obs)} as observation"
            raise ContractError(f"{where} gave {found}, expected {space.shape} as its observation_space says")
        if isinstance(space, gym.spaces.Box) and np.asarray(obs).dtype.kind not in "biuf":
            raise ContractError(f"{where} gave an observation of {np.asarray(obs).dtype}, expected numbers")
        if not isinstance(info, dict):
            raise ContractError(f"{where} gave {_shown(info)} as info, expected a dictionary")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "env" or name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self.env, name, value)


def copy_observations(env: VectorEnv[Any, Any, Any] | VecEnv) -> None:
    """Wraps the single environments of a batch in this process in `CopyObservation`."""
    batch = env.unwrapped
    if isinstance(batch, (SyncVectorEnv, DummyVecEnv)):
        around: Any = [
            CopyObservation(single)
            if isinstance(single, gym.Env) and not isinstance(single, CopyObservation)
            else single
            for single in batch.envs
        ]
        batch.envs = around


def _number(reward: Any) -> float:
    """A reward of another type, such as an array of one number, as a number."""
    try:
        if np.size(reward) != 1:
            raise ValueError
        return float(np.asarray(reward).reshape(()))
    except (TypeError, ValueError, OverflowError):
        raise ContractError(f"step gave {_shown(reward)} as reward, expected a number") from None


def _shown(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, tuple):
        return f"{len(value)} values"
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else " ".join(repr(value)[:40].split())


def _copied(obs: Any) -> Any:
    return obs.copy() if isinstance(obs, np.ndarray) else copy.deepcopy(obs)
