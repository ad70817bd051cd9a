"""Environments by their id, and any environment as a `TensorEnv`."""

from __future__ import annotations

import contextlib
import difflib
import importlib
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

import envs as engram_envs
from agents.arguments import read_arguments
from agents.environments.copies import copy_observations
from agents.environments.host import HostEnv, VecEnvHost, VectorEnvHost
from agents.environments.vec_env import TensorVecEnv, VectorVecEnv
from envs.tensor_env import TensorEnv
from policies.actions import check_action_space
from policies.observations import Layout

EnvLike = str | gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | VecEnv | TensorEnv


def make_env(env_id: str, num_envs: int = 1, device: torch.device | str = "cpu", **kwargs: Any) -> TensorEnv:
    """`num_envs` copies of a registered environment on `device`.

    Ids whose vector entry point is a `TensorEnv` (all `Engram/...`, and yours) are batched on the device; any other
    Gymnasium id runs as `num_envs` ordinary copies on the host. `module:Id-v0` imports `module` first, as in Gymnasium.
    `kwargs` go to the environment.

    Raises:
        ValueError: the id is unknown (the message lists near ones) or its arguments are wrong.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        spec = gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        known = engram_envs.registered()
        near = difflib.get_close_matches(env_id, [*known, *gym.registry], n=4, cutoff=0.5)
        raise ValueError(
            f"unknown environment {env_id!r}; near it: {', '.join(near) or 'nothing'}; "
            f"this project's: {', '.join(known)}; any other registered Gymnasium id works too"
        ) from error
    try:
        maker = _batched(spec)
        if maker is not None:
            kwargs = read_arguments(maker, kwargs, "env_kwargs", ("num_envs", "device"))
            env = gym.make_vec(name, num_envs, "vector_entry_point", device=device, **kwargs)
            assert isinstance(env, TensorEnv)
            return env
        mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
        return as_tensor_env(gym.make_vec(name, num_envs, "sync", vector_kwargs=mode, **kwargs), device)
    except TypeError as error:
        raise ValueError(f"environment {env_id!r} does not take {kwargs}: {error}") from error


def device_for(device: torch.device | str, env: EnvLike | None) -> torch.device:
    """`device` as SB3 has it, where "auto" is that of an environment which has one, and else an accelerator if any."""
    if isinstance(env, TensorVecEnv):
        env = env.tensor_env
    return env.device if isinstance(env, TensorEnv) and str(device) == "auto" else get_device(device)


def as_tensor_env(env: EnvLike, device: torch.device | str = "cpu") -> TensorEnv:
    """`env` behind the tensor interface, on `device`.

    Raises:
        ValueError: a `TensorEnv` on another device, a vector environment that resets at the *next* step, or a space
            that no network takes (the message names the entry, and what to do).
        TypeError: nothing that is an environment.
    """
    if isinstance(env, str):
        with contextlib.suppress(gym.error.Error, ImportError, ValueError):  # the call below says what is wrong
            if _batched(gym.spec(env)) is None:
                return make_env(env, 1, device, render_mode="rgb_array")  # as SB3 makes it, to be watched
        return make_env(env, 1, device)
    if isinstance(env, TensorVecEnv):
        env = env.tensor_env
    if isinstance(env, TensorEnv):
        if torch.device(device).type != env.device.type:
            raise ValueError(f"the environment lives on {env.device} but the agent on {device}; put both on one device")
        if isinstance(env.single_observation_space, spaces.Tuple) or Layout(env.single_observation_space).renames:
            raise ValueError(
                f"{type(env).__name__} has nested observations; a TensorEnv gives one flat dict of tensors"
            )
        check_action_space(env.single_action_space)
        return env
    if isinstance(env, VectorVecEnv):
        env = env.source.env
    parts: tuple[gym.Env[Any, Any], ...] = ()
    if isinstance(env, gym.Env):
        single, parts = env, (env,)
        env = SyncVectorEnv([lambda: single], autoreset_mode=AutoresetMode.SAME_STEP)
    if not isinstance(env, (VecEnv, VectorEnv)):
        raise TypeError(f"expected a Gymnasium id, Env, VectorEnv, SB3 VecEnv or TensorEnv, not {type(env).__name__}")
    copy_observations(env)
    return HostEnv(VecEnvHost(env) if isinstance(env, VecEnv) else VectorEnvHost(env, *parts), device)


def _batched(spec: EnvSpec) -> type[TensorEnv] | None:
    """Its class, where it is a `TensorEnv`."""
    maker: Any = spec.vector_entry_point
    if isinstance(maker, str):
        maker = load_env_creator(maker)
    return maker if isinstance(maker, type) and issubclass(maker, TensorEnv) else None
