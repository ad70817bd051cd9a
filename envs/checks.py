"""Compares the first step of a `TensorEnv` with its contract, where a subclass's mistake can still be named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor


class TensorEnvError(TypeError):
    """A subclass of `TensorEnv` violates the contract; the message says how, and what is expected."""


def check_advance(env: Any, given: Any) -> None:
    """Checks the result of `_advance`. Only types and shapes are read, so nothing is launched on the device.

    Raises:
        TensorEnvError: a value is missing, or of another type or shape.
    """
    name = f"{type(env).__name__}._advance"
    if not isinstance(given, tuple) or len(given) != 3:
        found = f"{len(given)} values" if isinstance(given, tuple) else f"a {type(given).__name__}"
        raise TensorEnvError(f"{name} returned {found}, expected 3: reward, terminated, truncated")
    reward, terminated, truncated = given
    _check_tensor(env, f"{name} returned a reward", reward, (env.num_envs,))
    if env.horizon is None:
        if terminated is None:
            raise TensorEnvError(
                f"{name} returned None as terminated, expected a bool tensor ({env.num_envs},), or a horizon given to "
                "super().__init__ if all episodes end after the same number of steps"
            )
        for word, ends in (("terminated", terminated), ("truncated", truncated)):
            if ends is not None:
                _check_tensor(env, f"{name} returned {word}", ends, (env.num_envs,))
                if ends.dtype != torch.bool:
                    raise TensorEnvError(f"{name} returned {word} of {ends.dtype}, expected torch.bool")


def check_metrics(env: Any, measured: Mapping[str, Any]) -> None:
    """Checks that a step has measured every metric that `metric_names` lists.

    Raises:
        TensorEnvError: one is missing.
    """
    if missing := [f"{name}=(amount, count)" for name in env.metric_names if name not in measured]:
        call = f"{type(env).__name__}._advance did not call self._measure({', '.join(missing)})"
        raise TensorEnvError(f"{call}, although metric_names lists it")


def check_observation(env: Any, obs: Any) -> None:
    """Checks the result of `_observe`.

    Raises:
        TensorEnvError: an entry is missing, or of another type or shape.
    """
    space, name = env.single_observation_space, f"{type(env).__name__}._observe"
    if not isinstance(space, spaces.Dict):
        _check_tensor(env, f"{name} returned an observation", obs, (env.num_envs, *(space.shape or ())))
        return
    if not isinstance(obs, dict) or not set(space) <= set(obs):
        found = f"the entries {', '.join(obs)}" if isinstance(obs, dict) else f"a {type(obs).__name__}"
        raise TensorEnvError(f"{name} returned {found}, expected a dictionary with {', '.join(space)}")
    for entry, part in space.items():
        _check_tensor(env, f"{name} returned entry {entry!r}", obs[entry], (env.num_envs, *(part.shape or ())))


def _check_tensor(env: Any, what: str, value: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor):
        raise TensorEnvError(f"{what} of {type(value).__name__}, expected a tensor {shape}")
    if value.shape != shape:
        raise TensorEnvError(f"{what} of shape {tuple(value.shape)}, expected {shape}")
    if value.device.type != env.device.type:
        raise TensorEnvError(f"{what} on {value.device}, expected it on the environment's device, {env.device}")
