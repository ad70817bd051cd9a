"""Checks the return values of host environments against Gymnasium's API, and copies their observations."""

from __future__ import annotations

import copy
from collections.abc import Mapping
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
        ContractError: `reset` or `step` returns the wrong number of values, an observation outside its space (another
            shape, a missing entry, an integer out of range), a reward that is not a number, an end that is not a bool,
            or an `info` that is not a dictionary.

    Attributes are read from and set on the wrapped environment, for code that goes on using `envs[0].name`.
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
        _check_observation(where, "", obs, self.env.observation_space)
        if not isinstance(info, dict):
            raise ContractError(f"{where} gave {_shown(info)} as info, expected a dictionary")

    def __getattr__(self, name: str) -> Any:
        if name == "env" or name.startswith("__"):  # not yet built, as while it is unpickled
            raise AttributeError(name)
        return getattr(self.env, name)

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


def _check_observation(where: str, name: str, obs: Any, space: gym.spaces.Space[Any]) -> None:
    """Refuses what would fail later, in code that cannot name the entry or the environment."""
    noun, its = (
        (f"entry {name!r} of the observation", "its space") if name else ("observation", "its observation_space")
    )
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(obs, Mapping):
            raise ContractError(f"{where} gave {_shown(obs)} as {noun}, expected a dictionary with {', '.join(space)}")
        for key, entry in space.items():
            path = f"{name}.{key}" if name else str(key)
            if key not in obs:
                raise ContractError(f"{where} gave an observation without the entry {path!r} of its observation_space")
            _check_observation(where, path, obs[key], entry)
    elif isinstance(space, gym.spaces.Tuple):
        if not isinstance(obs, (tuple, list)) or len(obs) != len(space):
            raise ContractError(f"{where} gave {_shown(obs)} as {noun}, expected a tuple of {len(space)}")
        for place, entry in enumerate(space):
            _check_observation(where, f"{name}.{place}" if name else str(place), obs[place], entry)
    elif isinstance(space, gym.spaces.Discrete):
        _check_whole_numbers(where, noun, obs, space, int(space.start), int(space.start + space.n - 1))
    elif isinstance(space, (gym.spaces.Box, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)):
        if np.shape(obs) != space.shape:
            article = f"{'' if name else 'an '}{noun}"
            found = f"{article} of shape {np.shape(obs)}" if np.shape(obs) else f"{_shown(obs)} as {noun}"
            raise ContractError(f"{where} gave {found}, expected {space.shape} as {its} says")
        if np.asarray(obs).dtype.kind not in "biuf":
            article = f"{'' if name else 'an '}{noun}"
            raise ContractError(f"{where} gave {article} of {np.asarray(obs).dtype}, expected numbers")
        if isinstance(space, gym.spaces.MultiDiscrete):
            _check_whole_numbers(where, noun, obs, space, space.start, space.start + space.nvec - 1)


def _check_whole_numbers(where: str, noun: str, obs: Any, space: gym.spaces.Space[Any], least: Any, most: Any) -> None:
    numbers = np.asarray(obs)
    fit = numbers.dtype.kind in "biuf" and (space.shape != () or numbers.size == 1)
    if not fit or not ((numbers >= least) & (numbers <= most) & (numbers == np.floor(numbers))).all():
        raise ContractError(f"{where} gave {_shown(obs)} as {noun}, expected an element of {space}")


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
