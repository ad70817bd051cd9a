"""HostEnv: environments that step on the host, behind the tensor interface."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorRecordEpisodeStatistics
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
)
from torch import Tensor

from agents.environments.host_masks import HostMasks
from agents.environments.infos import of_vector, row
from agents.environments.vec_env import VectorVecEnv
from agents.environments.watch import Watch, watch
from envs.tensor_env import Info, Obs, TensorEnv
from policies.actions import check_action_space
from policies.observations import Layout


class Host:
    """A batch of environments on the host: numpy in and out, `SAME_STEP` resets."""

    env: VecEnv | VectorEnv[Any, Any, Any]
    num_envs: int
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    masks: HostMasks
    vec_env: VecEnv
    """What SB3's clients are given, in the environments' own numbers."""
    watch: Watch
    """Who else moves them."""
    counts_episodes: bool = False
    """Whether `Monitor` or its like is within, so that what it counts is what is logged."""

    def reset(self, seed: int | None, options: dict[str, Any] | None = None) -> Any:
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # a deep copy of an agent, whose environments nobody watches yet
        moves, self.watch = self.watch.moves, watch(self.env)
        self.watch.moves = moves

    def shown(self) -> Any:
        """The observation that they show since somebody else has moved them, None where that is not known."""
        raise NotImplementedError

    def infos(self) -> list[dict[str, Any]]:
        """What each copy said beside the last step, as in SB3."""
        raise NotImplementedError

    def ended(self) -> list[tuple[int, dict[str, Any]]]:
        """Number and `infos` of each copy that may have ended an episode with the last step."""
        raise NotImplementedError

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        """Observations, rewards, terminated, truncated, and the final observations where any copy ended, else None."""
        raise NotImplementedError

    def render(self) -> Sequence[Any] | None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class VectorEnvHost(Host):
    """A Gymnasium vector environment; `parts` are single environments of it that somebody else may move."""

    def __init__(self, env: VectorEnv[Any, Any, Any], *parts: gym.Env[Any, Any]) -> None:
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
        self.env: VectorEnv[Any, Any, Any] = env
        self.num_envs = env.num_envs
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.masks = HostMasks(env, self.action_space)
        self.watch = watch(env, *parts)
        self.counts_episodes = _counts_episodes(env)
        self.info: dict[str, Any] = {}
        self.vec_env = VectorVecEnv(self)

    def reset(self, seed: int | None, options: dict[str, Any] | None = None) -> Any:
        obs, self.info = self.env.reset(seed=seed, options=options)
        self.masks.take(self.info)
        return obs

    def shown(self) -> Any:
        if self.watch.shown is not None:
            self.masks.take(self.watch.said)
        return self.watch.shown

    def reset_infos(self) -> list[dict[str, Any]]:
        """What each copy said beside its last reset, of those that were just reset."""
        return [of_vector(self.info, index, False) for index in range(self.num_envs)]

    def infos(self) -> list[dict[str, Any]]:
        return [self._info_of(index) for index in range(self.num_envs)]

    def ended(self) -> list[tuple[int, dict[str, Any]]]:
        _, terminated, truncated, _ = self._last
        return [(int(index), self._info_of(int(index))) for index in np.flatnonzero(terminated | truncated)]

    def _info_of(self, index: int) -> dict[str, Any]:
        info, terminated, truncated, final = self._last
        over = bool(terminated[index] or truncated[index])
        said = of_vector(info, index, over)
        said["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
        if over:
            said["terminal_observation"] = row(final, index)
        return said

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.info = info
        self.masks.take(info)
        final = None
        if "final_obs" in info:
            final = _copy(obs)
            for index in np.flatnonzero(info["_final_obs"]):
                _assign(final, int(index), info["final_obs"][index])
        self._last = (info, terminated, truncated, final)
        return obs, reward, terminated, truncated, final

    def render(self) -> Sequence[Any] | None:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


class VecEnvHost(Host):
    """An SB3 `VecEnv`."""

    def __init__(self, env: VecEnv) -> None:
        env = _channels_first(env)
        self.env: VecEnv = env
        self.vec_env = env
        self.num_envs = env.num_envs
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self.masks = HostMasks(env, self.action_space)
        self.watch = watch(env)
        self._raw: VecNormalize | None = None
        with contextlib.suppress(AttributeError, NotImplementedError):  # some take no such question
            self.counts_episodes = is_vecenv_wrapped(env, VecMonitor) or all(env.env_is_wrapped(Monitor))
        if not self.counts_episodes and (normalized := unwrap_vec_normalize(env)) is not None:
            self._raw, self.counts_episodes = normalized, True
        self.begin()

    def shown(self) -> Any:
        self.begin()
        if self.watch.shown is not None:
            self.masks.take(self._of_present(*self.watch.said))
        return self.watch.shown

    def _of_present(self, done: np.ndarray[Any, Any], infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What came with the present observations: who is done shows the next episode already."""
        begun = zip(done, infos, self.env.unwrapped.reset_infos, strict=True)
        return [after if over else info for over, info, after in begun]

    def begin(self) -> None:
        """No episode is under way."""
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        self._done = np.zeros(self.num_envs, dtype=bool)

    def reset(self, seed: int | None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.env.seed(seed)
        self.begin()
        obs = self.env.reset()
        self.masks.take(self.env.unwrapped.reset_infos)
        return obs

    def infos(self) -> list[dict[str, Any]]:
        return list(self._infos)

    def ended(self) -> list[tuple[int, dict[str, Any]]]:
        if self._raw is None:
            return list(enumerate(self._infos))
        counted = []
        for index in np.flatnonzero(self._done):
            episode = {"r": float(self._returns[index]), "l": int(self._lengths[index])}
            counted.append((int(index), {"episode": episode, **self._infos[index]}))
        return counted

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        obs, reward, done, infos = self.env.step(action)
        if self._raw is not None:  # rewards before they are normalised
            self._returns[self._done] = 0
            self._lengths[self._done] = 0
            self._returns += self._raw.get_original_reward()
            self._lengths += 1
        self._infos, self._done = infos, done
        self.masks.take(self._of_present(done, infos))
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
        check_action_space(host.action_space)
        self._layout = Layout(host.observation_space)
        self.host, self._own = host, 0
        super().__init__(host.num_envs, self._layout.space, host.action_space, device)
        self.vec_env = host.vec_env
        """The environments as SB3's clients are given them: see `agents.environments.TensorVecEnv`."""
        self.counts_episodes = host.counts_episodes
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
        return self._tensors(self.host.reset(seed, options)), self._describe()

    @property
    def visits(self) -> object:
        """Resets, and steps that others than this adapter made."""
        return self.host.watch.moves - self._own

    @visits.setter
    def visits(self, value: object) -> None:
        """They are counted beneath."""

    def observe(self) -> Obs:
        """What the environments show now; where only one of them or one layer was moved, all are reset."""
        shown = self.host.shown()
        return self.reset()[0] if shown is None else self._tensors(shown)

    def step(self, action: Tensor) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        action_dtype = self.single_action_space.dtype
        moves = self.host.watch.moves
        obs, reward, terminated, truncated, final = self.host.step(
            action.cpu().numpy().astype(action_dtype, copy=False)
        )
        self._own += self.host.watch.moves - moves
        self._truncated_now = bool(np.any(truncated))
        info: Info = {**self._describe(), "infos": self.host.infos, "shown": obs}
        if final is not None:
            info |= {"final_obs": self._tensors(final), **self._episodes()}
        return (
            self._tensors(obs),
            torch.as_tensor(np.asarray(reward, dtype=np.float32), device=self.device),
            torch.as_tensor(np.array(terminated, dtype=bool), device=self.device),
            torch.as_tensor(np.array(truncated, dtype=bool), device=self.device),
            info,
        )

    def _describe(self) -> Info:
        masks = self.host.masks.now
        return {} if masks is None else {"action_mask": torch.as_tensor(masks, device=self.device)}

    def _episodes(self) -> dict[str, Tensor]:
        """What the environments themselves say of the episodes that ended, NaN where they say nothing: `[N]` each."""
        said = np.full((3, self.num_envs), np.nan, dtype=np.float32)
        for index, info in self.host.ended():
            if "episode" in info:
                said[:2, index] = info["episode"]["r"], info["episode"]["l"]
            if info.get("is_success") is not None:
                said[2, index] = info["is_success"]
        returns, lengths, success = torch.as_tensor(said, device=self.device)
        return {"episode_return": returns, "episode_length": lengths, "is_success": success}

    def _tensors(self, obs: Any) -> Obs:
        arrays = self._layout.read(obs)
        if isinstance(arrays, dict):
            return {name: torch.tensor(array, device=self.device) for name, array in arrays.items()}
        return torch.tensor(arrays, device=self.device)  # a copy: the environment may use its arrays again

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


def _channels_first(env: VecEnv) -> VecEnv:
    """`env` with its pictures' channels first, as SB3's learners wrap it."""
    space = env.observation_space
    entries = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if not any(map(_is_channels_last, entries)):
        return env
    with contextlib.suppress(AssertionError):  # channels are first in some entries and last in others
        return VecTransposeImage(env)
    return env


def _counts_episodes(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether a wrapper around the vector environment or around each of its environments counts episodes."""
    while isinstance(env, VectorWrapper):
        if isinstance(env, VectorRecordEpisodeStatistics):
            return True
        env = env.env
    single = getattr(env, "envs", None) or [None]
    return all(each is not None and (_has(each, Monitor) or _has(each, RecordEpisodeStatistics)) for each in single)


def _has(env: gym.Env[Any, Any], wrapper: type[gym.Wrapper[Any, Any, Any, Any]]) -> bool:
    return is_wrapped(env, wrapper)


def _is_channels_last(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space)


def _copy(obs: Any) -> Any:
    if isinstance(obs, dict):
        return {key: _copy(value) for key, value in obs.items()}
    if isinstance(obs, tuple) and not any(isinstance(value, str) for value in obs):  # a batch of text is a tuple too
        return tuple(map(_copy, obs))
    return np.array(obs, dtype=object if isinstance(obs, tuple) else None)


def _assign(batch: Any, index: int, obs: Any) -> None:
    if isinstance(batch, dict):
        for key in batch:
            _assign(batch[key], index, obs[key])
    elif isinstance(batch, tuple):
        for part, value in zip(batch, obs, strict=True):
            _assign(part, index, value)
    else:
        batch[index] = obs
