"""Checks the return values of host environments against Gymnasium's API, and copies their observations."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents.environments.infos import kept

SPACE = "observation_space"


class ContractError(Exception):
    """An environment's `step` or `reset` violates Gymnasium's API; the message says how."""


class CopyObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Copies observations, because some environments reuse one array for all steps.

    Numbers of another type than the space's are converted if that changes none of them. Entries that are not in the
    space are left out.

    Raises:
        ContractError: `reset` or `step` returns the wrong number of values, an observation outside its space (another
            shape, a missing entry, an integer out of range), a reward that is not a number, an end that is neither
            true nor false,
            or an `info` that is not a dictionary; `reset` takes no seed; the space has changed.

    Attributes are read from and set on the wrapped environment, for code that uses `envs[0].name`.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._space = env.observation_space  # the space for which the agent's networks are built

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        try:
            result: Any = self.env.reset(seed=seed, options=options)
        except TypeError as error:
            env = self.env.unwrapped
            if not _accepts(env.reset, seed=seed, options=options):
                raise ContractError(
                    f"{type(env).__name__}.reset does not take seed and options, expected reset(self, *, seed=None, "
                    "options=None)"
                ) from error
            raise
        if not isinstance(result, tuple) or len(result) != 2:
            raise ContractError(f"reset returned {_shown(result)}, expected an observation and a dictionary")
        obs, info = result
        return self._checked_copy("reset", obs, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result: Any = self.env.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            expected = "5: observation, reward, terminated, truncated, info"
            raise ContractError(f"step returned {_shown(result)}, expected {expected}")
        obs, reward, terminated, truncated, info = result
        obs = self._checked_copy("step", obs, info)
        if type(reward) is not float and not isinstance(reward, (np.floating, np.integer)):
            reward = number("reward", reward)
        for name, end in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(end, (bool, np.bool_, int, np.integer)) and not _is_truth(end):
                raise ContractError(f"step returned {_shown(end)} as {name}, expected true or false")
        return obs, reward, terminated, truncated, info

    def _checked_copy(self, where: str, obs: Any, info: Any) -> Any:
        """A copy of the observation, in the types of its space."""
        try:
            copied = _copied(where, "", obs, self._space)
        except ContractError as error:
            if self.env.observation_space != self._space:
                raise ContractError(
                    f"observation_space was {_line(self._space)} when the agent was built, and is now "
                    f"{_line(self.env.observation_space)}; expected one space for all episodes: pad the observations"
                ) from error
            raise
        if not isinstance(info, dict):
            raise ContractError(f"{where} returned {_shown(info)} as info, expected a dictionary")
        return copied

    def __getattr__(self, name: str) -> Any:
        if name == "env" or name.startswith("__"):  # not yet built, as while it is unpickled
            raise AttributeError(name)
        return getattr(self.env, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "env" or name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self.env, name, value)


class CopyAndKeep(CopyObservation):
    """Also keeps the values of `info` as they are in a batch; see `infos.Kept`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(seed=seed, options=options)
        return obs, kept(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, kept(info)


def copy_observations(batch: VectorEnv[Any, Any, Any] | VecEnv) -> None:
    """Wraps each single environment of a batch in `CopyObservation`, if they run in this process.

    Raises:
        ValueError: two of them are the same object.
    """
    batch = batch.unwrapped
    if isinstance(batch, (SyncVectorEnv, DummyVecEnv)):
        if len({id(env.unwrapped) for env in batch.envs}) < len(batch.envs):
            raise ValueError(
                f"several of the {len(batch.envs)} environments are the same object, which each of them would step; "
                "expected functions that build a new one: [lambda: MyEnv()] * n"
            )
        wrapped: Any = [
            CopyObservation(env) if isinstance(env, gym.Env) and not isinstance(env, CopyObservation) else env
            for env in batch.envs
        ]
        batch.envs = wrapped


def _copied(where: str, name: str, obs: Any, space: gym.spaces.Space[Any]) -> Any:
    """A copy of an observation or one of its entries. Errors are raised here, where the name of the entry is known."""
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(obs, Mapping):
            raise ContractError(
                f"{where} returned {_shown(obs)} as {_entry(name)}, expected a dictionary with {', '.join(space)}"
            )
        copied = {}
        for key, entry in space.items():
            path = f"{name}.{key}" if name else str(key)
            if key not in obs:
                raise ContractError(f"{where} returned an observation without the entry {path!r} of its space")
            copied[key] = _copied(where, path, obs[key], entry)
        return copied
    if isinstance(space, gym.spaces.Tuple):
        if not isinstance(obs, (tuple, list)) or len(obs) != len(space):
            raise ContractError(f"{where} returned {_shown(obs)} as {_entry(name)}, expected a tuple of {len(space)}")
        entries = enumerate(zip(obs, space, strict=True))
        return tuple(_copied(where, f"{name}.{i}" if name else str(i), each, entry) for i, (each, entry) in entries)
    if isinstance(space, gym.spaces.Discrete):
        numbers = np.asarray(obs)
        if numbers.size == 1:
            _check_whole_numbers(where, name, obs, space, int(space.start), int(space.start + space.n - 1))
            return space.dtype.type(numbers.item())
        raise ContractError(f"{where} returned {_shown(obs)} as {_entry(name)}, expected an element of {_line(space)}")
    if isinstance(space, (gym.spaces.Box, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)):
        return _array(where, name, obs, space)
    if isinstance(space, gym.spaces.Text) and not isinstance(obs, str):
        raise ContractError(f"{where} returned {_shown(obs)} as {_entry(name)}, expected a text (str)")
    return copy.deepcopy(obs)


def _array(
    where: str, name: str, obs: Any, space: gym.spaces.Box | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary
) -> np.ndarray[Any, Any]:
    article = f"{'' if name else 'an '}{_entry(name)}"
    if np.shape(obs) != space.shape:
        found = f"{article} of shape {np.shape(obs)}" if np.shape(obs) else f"{_shown(obs)} as {_entry(name)}"
        raise ContractError(
            f"{where} returned {found}, expected {space.shape} as its {'space' if name else SPACE} says"
        )
    array = np.asarray(obs).copy()  # np.array(obs) warns about tensors
    if array.dtype.kind not in "biuf":
        raise ContractError(f"{where} returned {article} of {array.dtype}, expected numbers")
    if isinstance(space, gym.spaces.MultiDiscrete):
        _check_whole_numbers(where, name, obs, space, space.start, space.start + space.nvec - 1)
    if isinstance(space, gym.spaces.MultiBinary):
        _check_whole_numbers(where, name, obs, space, 0, 1)
    wanted = np.dtype(space.dtype)
    if array.dtype == wanted or wanted.kind == "f" or np.can_cast(array.dtype, wanted):
        return array  # the batch converts it
    with np.errstate(invalid="ignore"):
        converted = array.astype(wanted)
    if (converted != array).any():
        wrong = array[converted != array].flat[0]
        raise ContractError(f"{where} returned {article} with {wrong}, expected {wanted} as its space says")
    return converted


def _check_whole_numbers(where: str, name: str, obs: Any, space: gym.spaces.Space[Any], least: Any, most: Any) -> None:
    numbers = np.asarray(obs)
    fit = numbers.dtype.kind in "biuf"
    if not fit or not ((numbers >= least) & (numbers <= most) & (numbers == np.floor(numbers))).all():
        found = numbers.tolist() if numbers.shape == space.shape and numbers.size <= 8 else obs
        raise ContractError(
            f"{where} returned {_shown(found)} as {_entry(name)}, expected an element of {_line(space)}"
        )


def _entry(name: str) -> str:
    return f"entry {name!r} of the observation" if name else "observation"


def _accepts(method: Any, **arguments: Any) -> bool:
    try:
        inspect.signature(method).bind(**arguments)
    except TypeError:
        return False
    return True


def _line(space: gym.spaces.Space[Any]) -> str:
    return " ".join(str(space).split())


def number(name: str, value: Any) -> float:
    """Converts a number of any type, such as an array of one.

    Raises:
        ContractError: it is none.
    """
    try:
        found = np.asarray(value)
        if found.size != 1 or found.dtype.kind not in "biuf":
            raise ValueError
        return float(found.reshape(()))
    except (TypeError, ValueError, OverflowError):
        raise ContractError(f"step returned {_shown(value)} as {name}, expected a number") from None


def _is_truth(end: Any) -> bool:
    """Whether it is a bool, 0 or 1 of any type. None, texts, NaN and fractions would be converted silently."""
    found = np.asarray(end)
    return found.shape == () and found.dtype.kind in "biuf" and float(found) in (0.0, 1.0)


def _shown(value: Any) -> str:
    """A short description of a value."""
    if isinstance(value, tuple):
        return f"{len(value)} values"
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else " ".join(repr(value)[:40].split())
