"""Anything in, one tensor interface out.

`make_env` builds from a Gymnasium id, `as_tensor_env` takes what is already built: a `TensorEnv` as it is, an ordinary
`gymnasium.Env`, a Gymnasium `VectorEnv` or an SB3 `VecEnv` behind `HostEnv`, which moves arrays to the device and back.
`TensorVecEnv` is the way back: a `TensorEnv` seen as an SB3 `VecEnv`, for `model.get_env()`, callbacks and
`evaluate_policy`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from torch import Tensor

import envs as engram_envs
from envs.tensor_env import Info, Obs, TensorEnv

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
        maker: Any = spec.vector_entry_point
        if isinstance(maker, str):
            maker = load_env_creator(maker)
        if isinstance(maker, type) and issubclass(maker, TensorEnv):
            env = gym.make_vec(name, num_envs, "vector_entry_point", device=device, **kwargs)
            assert isinstance(env, TensorEnv)
            return env
        mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
        return as_tensor_env(gym.make_vec(name, num_envs, "sync", vector_kwargs=mode, **kwargs), device)
    except TypeError as error:
        raise ValueError(f"environment {env_id!r} does not take {kwargs}: {error}") from error


def as_tensor_env(env: EnvLike, device: torch.device | str = "cpu") -> TensorEnv:
    """`env` behind the tensor interface, on `device`.

    Raises:
        ValueError: a `TensorEnv` on another device, or a vector environment that resets at the *next* step.
        TypeError: nothing that is an environment.
    """
    if isinstance(env, str):
        return make_env(env, 1, device)
    if isinstance(env, TensorVecEnv):
        env = env.tensor_env
    if isinstance(env, TensorEnv):
        if torch.device(device).type != env.device.type:
            raise ValueError(f"the environment lives on {env.device} but the agent on {device}; put both on one device")
        return env
    if isinstance(env, VecEnv):
        return HostEnv(_VecEnvHost(env), device)
    if isinstance(env, VectorEnv):
        return HostEnv(_VectorEnvHost(env), device)
    if isinstance(env, gym.Env):
        single = env
        return HostEnv(_VectorEnvHost(SyncVectorEnv([lambda: single], autoreset_mode=AutoresetMode.SAME_STEP)), device)
    raise TypeError(f"expected a Gymnasium id, Env, VectorEnv, SB3 VecEnv or TensorEnv, not {type(env).__name__}")


class _Host:
    """A batch of environments on the host: numpy in and out, `SAME_STEP` resets."""

    num_envs: int
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    def reset(self, seed: int | None) -> Any:
        raise NotImplementedError

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        """Observations, rewards, terminated, truncated, and the final observations where any copy ended, else None."""
        raise NotImplementedError

    def render(self) -> Sequence[Any] | None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _VectorEnvHost(_Host):
    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP and isinstance(env, SyncVectorEnv):
            # A synchronous environment reads its mode at every step, so it can still be told.
            env.autoreset_mode = mode = AutoresetMode.SAME_STEP
            env.metadata = {**env.metadata, "autoreset_mode": mode}
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"{env} resets at the {mode}: its reset steps carry no experience. Build it with "
                "vectorization_mode='sync', vector_kwargs={'autoreset_mode': gymnasium.vector.AutoresetMode.SAME_STEP}"
            )
        self.env = env
        self.num_envs = env.num_envs
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space

    def reset(self, seed: int | None) -> Any:
        return self.env.reset(seed=seed)[0]

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        final = None
        if "final_obs" in info:
            final = _copy(obs)
            for index in np.flatnonzero(info["_final_obs"]):
                _assign(final, int(index), info["final_obs"][index])
        return obs, reward, terminated, truncated, final

    def render(self) -> Sequence[Any] | None:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


class _VecEnvHost(_Host):
    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.observation_space = env.observation_space
        self.action_space = env.action_space

    def reset(self, seed: int | None) -> Any:
        if seed is not None:
            self.env.seed(seed)
        return self.env.reset()

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        obs, reward, done, infos = self.env.step(action)
        truncated = np.array([d and bool(i.get("TimeLimit.truncated")) for d, i in zip(done, infos, strict=True)])
        final = None
        if done.any():
            final = _copy(obs)
            for index in np.flatnonzero(done):
                _assign(final, int(index), infos[index]["terminal_observation"])
        return obs, reward, done & ~truncated, truncated, final

    def render(self) -> Sequence[Any] | None:
        return self.env.get_images()

    def close(self) -> None:
        self.env.close()


class HostEnv(TensorEnv):
    """Environments that run on the host, behind the tensor interface: one transfer each way at every step.

    Their state cannot be read, so a resumed run starts them anew; everything else of the run goes on.
    """

    def __init__(self, host: _Host, device: torch.device | str = "cpu") -> None:
        space = host.observation_space
        entries = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self._channels_last = {name for name, entry in entries.items() if _is_channels_last(entry)}
        self._first = {name: getattr(entry, "start", 0) for name, entry in entries.items()}
        self._first_action = getattr(host.action_space, "start", 0)
        entries = {name: _plain(entry) for name, entry in entries.items()}
        space = spaces.Dict(entries) if isinstance(space, spaces.Dict) else entries[""]
        super().__init__(host.num_envs, space, _plain(host.action_space), device)
        self.host = host
        self.render_mode = "rgb_array"

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        """Whether the step just made truncated a copy: the host knows."""
        return self._truncated_now

    _truncated_now = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, Info]:
        if isinstance(seed, Sequence):
            raise TypeError("HostEnv.reset takes one integer seed for all copies, not a sequence")
        return self._tensors(self.host.reset(seed)), {}

    def step(self, action: Tensor) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        action_dtype = self.single_action_space.dtype
        obs, reward, terminated, truncated, final = self.host.step(
            (action.cpu().numpy() + self._first_action).astype(action_dtype, copy=False)
        )
        self._truncated_now = bool(np.any(truncated))
        return (
            self._tensors(obs),
            torch.as_tensor(np.asarray(reward, dtype=np.float32), device=self.device),
            torch.as_tensor(np.array(terminated, dtype=bool), device=self.device),
            torch.as_tensor(np.array(truncated, dtype=bool), device=self.device),
            {} if final is None else {"final_obs": self._tensors(final)},
        )

    def _tensors(self, obs: Any) -> Obs:
        if isinstance(obs, dict):
            return {name: self._tensor(name, value) for name, value in obs.items()}
        return self._tensor("", obs)

    def _tensor(self, name: str, obs: Any) -> Tensor:
        tensor = torch.as_tensor(np.asarray(obs) - self._first[name], device=self.device)
        return tensor.movedim(-1, 1) if name in self._channels_last else tensor

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        frames = self.host.render()
        if frames is None or frames[index] is None:
            raise RuntimeError("this environment draws no frames: build it with render_mode='rgb_array'")
        return np.asarray(frames[index], dtype=np.uint8)

    def state_dict(self) -> dict[str, Tensor]:
        """Empty: a host environment does not show its state."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to load; the caller starts the environment anew."""

    def close(self, **kwargs: Any) -> None:
        self.host.close()


def _is_channels_last(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space)


def _plain(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """`space` as SB3's networks and distributions take it: images with channels first, discrete values from 0 up."""
    if _is_channels_last(space):
        return VecTransposeImage.transpose_space(space)  # type: ignore[arg-type]
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(space.n)
    return spaces.MultiDiscrete(space.nvec) if isinstance(space, spaces.MultiDiscrete) else space


def _copy(obs: Any) -> Any:
    return {key: value.copy() for key, value in obs.items()} if isinstance(obs, dict) else np.array(obs)


def _assign(batch: Any, index: int, obs: Any) -> None:
    if isinstance(batch, dict):
        for key, value in obs.items():
            batch[key][index] = value
    else:
        batch[index] = obs


class TensorVecEnv(VecEnv):
    """A `TensorEnv` seen as an SB3 `VecEnv`: numpy in and out.

    Episodes are counted as SB3's `Monitor` does (`info["episode"]`), so `evaluate_policy` needs no further wrapper.
    """

    def __init__(self, tensor_env: TensorEnv) -> None:
        self.tensor_env = tensor_env  # first: the base class asks it for its render mode
        super().__init__(tensor_env.num_envs, tensor_env.single_observation_space, tensor_env.single_action_space)
        self.render_mode = tensor_env.render_mode
        self.moves = 0
        """Resets and steps made through this view; the learner, which goes past it, sees that others were here."""
        self._action: Tensor | None = None
        self._next_seed: int | None = None
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the generator of all copies at the next reset."""
        self._next_seed = seed
        return [seed] * self.num_envs

    def reset(self) -> VecEnvObs:
        self.observation, _ = self.tensor_env.reset(seed=self._next_seed)
        self._next_seed = None
        self.moves += 1
        self._returns[:] = 0
        self._lengths[:] = 0
        return self.seen(self.observation)

    @staticmethod
    def seen(obs: Obs) -> VecEnvObs:
        """A tensor observation as SB3 sees it."""
        return _numpy(obs)

    def step_async(self, actions: np.ndarray[Any, Any]) -> None:
        self._action = torch.as_tensor(actions, device=self.tensor_env.device)

    def step_wait(self) -> VecEnvStepReturn:
        assert self._action is not None, "step_wait without step_async"
        self.moves += 1
        obs, reward, terminated, truncated, info = self.tensor_env.step(self._action)
        rewards = reward.cpu().numpy()
        dones = (terminated | truncated).cpu().numpy()
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            final, timeouts = _numpy(info["final_obs"]), (truncated & ~terminated).cpu().numpy()
            for index in np.flatnonzero(dones):
                infos[index] = {
                    "terminal_observation": _entry(final, int(index)),
                    "TimeLimit.truncated": bool(timeouts[index]),
                    "episode": {"r": float(self._returns[index]), "l": int(self._lengths[index]), "t": 0.0},
                }
            self._returns[dones] = 0
            self._lengths[dones] = 0
        return _numpy(obs), rewards, dones, infos

    def close(self) -> None:
        self.tensor_env.close()

    def get_images(self) -> Sequence[np.ndarray[Any, Any] | None]:
        return [self.tensor_env.frame(index) for index in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        value = getattr(self.tensor_env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        setattr(self.tensor_env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        result = getattr(self.tensor_env, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def _numpy(obs: Obs) -> VecEnvObs:
    # A copy: the tensor may share its memory with what the environment goes on to change.
    if isinstance(obs, dict):
        return {key: value.cpu().numpy().copy() for key, value in obs.items()}
    return obs.cpu().numpy().copy()


def _entry(obs: VecEnvObs, index: int) -> Any:
    if isinstance(obs, dict):
        return {key: value[index] for key, value in obs.items()}
    assert isinstance(obs, np.ndarray)
    return obs[index]
