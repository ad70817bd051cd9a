"""One interface for batches of host environments, from Gymnasium and from SB3."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
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

from agents.environments.copies import ContractError
from agents.environments.host_masks import HostMasks
from agents.environments.infos import episode_counts, info_of_env, row
from agents.environments.processes import frozen_texts, naming_ended_processes
from agents.environments.watch import Watch, reset_infos, watch
from agents.sb3.vec_env import VectorVecEnv


class Host:
    """A batch of environments on the host: numpy in and out, `SAME_STEP` resets."""

    env: VecEnv | VectorEnv[Any, Any, Any]
    num_envs: int
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    masks: HostMasks
    vec_env: VecEnv
    """The SB3 `VecEnv`, with the environments' own action and observation values."""
    watch: Watch
    """Records resets and steps made by user code."""
    counts_episodes: bool = False
    """Whether a `Monitor` or a similar wrapper counts the episodes; its numbers are then logged."""

    def reset(self, seed: int | None, options: dict[str, Any] | None = None) -> Any:
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # a deep copy of an agent: its environments are not watched yet
        moves, self.watch = self.watch.moves, watch(self.env)
        self.watch.moves = moves

    def current_obs(self) -> Any:
        """The observation after user code has reset or stepped the environments; None if it is not known."""
        raise NotImplementedError

    def infos(self) -> list[dict[str, Any]]:
        """Each environment's `info` of the last step, as in SB3."""
        raise NotImplementedError

    def ended_infos(self) -> list[tuple[int, dict[str, Any]]]:
        """Index and `info` of each environment whose episode may have ended with the last step."""
        raise NotImplementedError

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        """Returns observations, rewards, terminated, truncated, final observations (None if no episode ended)."""
        raise NotImplementedError

    def render(self) -> Sequence[Any] | None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class VectorEnvHost(Host):
    """A Gymnasium vector environment; `parts` are its single environments, which user code may reset or step.

    Raises:
        ValueError: it resets at the next step (`AutoresetMode.NEXT_STEP`), shares texts between
            processes, or `reset` gives another `info` than a dictionary.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], *parts: gym.Env[Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP and isinstance(env, SyncVectorEnv):
            # A synchronous environment reads its mode at every step, so it can still be changed.
            env.autoreset_mode = mode = AutoresetMode.SAME_STEP
            env.metadata = {**env.metadata, "autoreset_mode": mode}
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(_advice(env, mode))
        if frozen_texts(env):
            name = type(env.unwrapped).__name__
            raise ValueError(
                f"{name} with shared memory gives the same texts at every step: build it with shared_memory=False"
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
        with naming_ended_processes(self.env):
            obs, self.info = self.env.reset(seed=seed, options=options)
        if not isinstance(self.info, dict):
            raise ValueError(
                f"{type(self.env).__name__} gives the info of a reset as {type(self.info).__name__}, expected the "
                "dictionary of Gymnasium's vector environments: leave out wrappers such as DictInfoToList"
            )
        self.masks.read(self.info)
        return obs

    def current_obs(self) -> Any:
        if self.watch.last_obs is not None:
            self.masks.read(self.watch.last_info)
        return self.watch.last_obs

    def reset_infos(self) -> list[dict[str, Any]]:
        """Each environment's `info` of its reset, for those that were just reset."""
        return [info_of_env(self.info, index, False) for index in range(self.num_envs)]

    def infos(self) -> list[dict[str, Any]]:
        return [self._info_of(index) for index in range(self.num_envs)]

    def ended_infos(self) -> list[tuple[int, dict[str, Any]]]:
        _, terminated, truncated, _ = self._last
        return [(int(index), self._info_of(int(index))) for index in np.flatnonzero(terminated | truncated)]

    def _info_of(self, index: int) -> dict[str, Any]:
        info, terminated, truncated, final = self._last
        over = bool(terminated[index] or truncated[index])
        of_env = info_of_env(info, index, over)
        of_env["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
        if over:
            of_env["terminal_observation"] = row(final, index)
        return of_env

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        with naming_ended_processes(self.env):
            obs, reward, terminated, truncated, info = self.env.step(action)
        self.info = info
        self.masks.read(info)
        final = None
        if "final_obs" in info:
            # a TensorEnv returns the final observations of all environments, others only of those that ended
            final = _copy(obs if "_final_obs" in info else info["final_obs"])
            for index in np.flatnonzero(info.get("_final_obs", ())):
                _assign(final, int(index), info["final_obs"][index])
        self._last = (info, terminated, truncated, final)
        return obs, reward, terminated, truncated, final

    def render(self) -> Sequence[Any] | None:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


class VecEnvHost(Host):
    """An SB3 `VecEnv`.

    Raises:
        ContractError: `step` truncates an episode without its last observation.
    """

    def __init__(self, env: VecEnv) -> None:
        env = _channels_first(env)
        self.env: VecEnv = env
        self.vec_env = env
        self.num_envs = env.num_envs
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self.masks = HostMasks(env, self.action_space)
        self.watch = watch(env)
        self._normalizer: VecNormalize | None = None
        """A wrapper whose rewards are counted before they are normalised; None: the environments count."""
        with contextlib.suppress(AttributeError, NotImplementedError):  # some do not implement it
            self.counts_episodes = is_vecenv_wrapped(env, VecMonitor) or all(env.env_is_wrapped(Monitor))
        if not self.counts_episodes and (normalizer := unwrap_vec_normalize(env)) is not None:
            self._normalizer, self.counts_episodes = normalizer, True
        self.begin()

    def current_obs(self) -> Any:
        self.begin()
        if self.watch.last_obs is not None:
            self.masks.read(self._current_infos(*self.watch.last_info))
        return self.watch.last_obs

    def _current_infos(self, done: np.ndarray[Any, Any], infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The `infos` of the current observations; an environment that is done is already in its next episode."""
        triples = zip(done, infos, reset_infos(self.env), strict=True)
        return [of_reset if over else of_step for over, of_step, of_reset in triples]

    def begin(self) -> None:
        """Resets the counts of running episodes."""
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        self._done = np.zeros(self.num_envs, dtype=bool)

    def reset(self, seed: int | None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.env.seed(seed)
        self.begin()
        obs = self.env.reset()
        self.masks.read(reset_infos(self.env))
        return obs

    def infos(self) -> list[dict[str, Any]]:
        return list(self._infos)

    def ended_infos(self) -> list[tuple[int, dict[str, Any]]]:
        if self._normalizer is None:
            return list(enumerate(self._infos))
        counted = []
        for index in np.flatnonzero(self._done):
            episode = {"r": float(self._returns[index]), "l": int(self._lengths[index])}
            info = self._infos[index]
            counted.append((int(index), info if episode_counts(info) else {**info, "episode": episode}))
        return counted

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        obs, reward, done, infos = self.env.step(action)
        if self._normalizer is not None:
            self._returns[self._done] = 0
            self._lengths[self._done] = 0
            self._returns += self._normalizer.get_original_reward()
            self._lengths += 1
        self._infos, self._done = infos, done
        self.masks.read(self._current_infos(done, infos))
        truncated = np.array([d and bool(i.get("TimeLimit.truncated")) for d, i in zip(done, infos, strict=True)])
        final = None
        if done.any():
            final = _copy(obs)
            for index in np.flatnonzero(done):
                last = infos[index].get("terminal_observation")
                if last is not None:
                    _assign(final, int(index), last)
                elif truncated[index]:
                    raise ContractError(
                        f"step of {type(self.env.unwrapped).__name__} cut an episode (TimeLimit.truncated) without the "
                        "last observation, expected it as infos[index]['terminal_observation']"
                    )
        return obs, reward, done & ~truncated, truncated, final

    def render(self) -> Sequence[Any] | None:
        return self.env.get_images()

    def close(self) -> None:
        self.env.close()


def _advice(env: VectorEnv[Any, Any, Any], mode: AutoresetMode | None) -> str:
    """How to make a vector environment reset in the same step."""
    same = "autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP"
    batch = env.unwrapped
    name, spec = type(batch).__name__, getattr(batch, "spec", None)
    if mode is None:
        return (
            f"{name} does not say when it resets; expected metadata['autoreset_mode'] = "
            "gymnasium.vector.AutoresetMode.SAME_STEP where it does so at the step that ends an episode; supersuit's "
            "concat_vec_envs_v1 with base_class='stable_baselines3' gives an SB3 VecEnv, which can be used"
        )
    resets = f"{name} resets at the {mode}: its reset steps carry no experience"
    if isinstance(batch, (SyncVectorEnv, AsyncVectorEnv)):
        build = f"{name}([...], {same})"
    elif same.split("=")[0] in inspect.signature(type(batch)).parameters:  # AtariVectorEnv, say
        build = f"{name}(..., {same})"
    else:
        mode_of = same.replace("autoreset_mode=", "vector_kwargs={'autoreset_mode': ") + "}"
        made = f"gymnasium.make_vec(..., vectorization_mode='sync', {mode_of})"
        build = f"agents.make_env({spec.id if spec else 'ID'!r}, n), or {made}"
    if batch is env:
        return f"{resets}. Build it with {build}"
    outer = type(env).__name__
    return (
        f"{resets}. Build it so before it is wrapped in {outer}: {build}. If {outer} then asks for NEXT_STEP, use the "
        f"single-environment wrapper: agents.make_env(id, n, wrappers=[gymnasium.wrappers.{outer}])"
    )


def _channels_first(env: VecEnv) -> VecEnv:
    """`env` with image channels first, as SB3's learners wrap it."""
    space = env.observation_space
    entries = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if not any(map(_is_channels_last, entries)):
        return env
    with contextlib.suppress(AssertionError):  # channels are first in some entries and last in others
        return VecTransposeImage(env)
    return env


def _counts_episodes(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether a wrapper around the vector environment, or around each single one, counts episodes."""
    while isinstance(env, VectorWrapper):
        if isinstance(env, VectorRecordEpisodeStatistics):
            return True
        env = env.env
    single = getattr(env, "envs", None) or [None]
    wrappers: Any = (Monitor, RecordEpisodeStatistics)
    return all(each is not None and any(is_wrapped(each, wrapper) for wrapper in wrappers) for each in single)


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
