"""HostEnv: environments that step on the host, behind the tensor interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage
from torch import Tensor

from agents.environments.host_masks import HostMasks
from envs.tensor_env import Info, Obs, TensorEnv


class Host:
    """A batch of environments on the host: numpy in and out, `SAME_STEP` resets."""

    num_envs: int
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    masks: HostMasks

    def reset(self, seed: int | None) -> Any:
        raise NotImplementedError

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        """Observations, rewards, terminated, truncated, and the final observations where any copy ended, else None."""
        raise NotImplementedError

    def render(self) -> Sequence[Any] | None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class VectorEnvHost(Host):
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
        self.masks = HostMasks(env, self.action_space)

    def reset(self, seed: int | None) -> Any:
        obs, info = self.env.reset(seed=seed)
        self.masks.take(info)
        return obs

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.masks.take(info)
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


class VecEnvHost(Host):
    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self.masks = HostMasks(env, self.action_space)

    def reset(self, seed: int | None) -> Any:
        if seed is not None:
            self.env.seed(seed)
        obs = self.env.reset()
        self.masks.take(self.env.reset_infos)
        return obs

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        obs, reward, done, infos = self.env.step(action)
        begun = zip(done, infos, self.env.reset_infos, strict=True)  # who is done shows the next episode already
        self.masks.take([after if d else info for d, info, after in begun])
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

    def __init__(self, host: Host, device: torch.device | str = "cpu") -> None:
        space = host.observation_space
        entries = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self._channels_last = {name for name, entry in entries.items() if _is_channels_last(entry)}
        self._first = {name: getattr(entry, "start", 0) for name, entry in entries.items()}
        self._first_action = getattr(host.action_space, "start", 0)
        entries = {name: _plain(entry) for name, entry in entries.items()}
        # Pairs keep the user's order; Gymnasium sorts a dict.
        space = spaces.Dict(list(entries.items())) if isinstance(space, spaces.Dict) else entries[""]
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
        return self._tensors(self.host.reset(seed)), self._describe()

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
            self._describe() | ({} if final is None else {"final_obs": self._tensors(final)}),
        )

    def _describe(self) -> Info:
        masks = self.host.masks.now
        return {} if masks is None else {"action_mask": torch.as_tensor(masks, device=self.device)}

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
