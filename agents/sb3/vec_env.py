"""`TensorVecEnv` and `VectorVecEnv`: SB3 `VecEnv`s for callbacks, wrappers and `evaluate_policy`.

An SB3 `VecEnv` passed by the user is used directly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn, tile_images

from agents.environments.infos import as_numpy, episode_counts, infos_of_obs, infos_of_step, row
from agents.environments.watch import Watch
from envs.tensor_env import TensorEnv


class _Counted(VecEnv):
    """Counts episodes as SB3's `Monitor` does, so that `evaluate_policy` needs no further wrapper."""

    def __init__(self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        super().__init__(num_envs, observation_space, action_space)
        self._action: np.ndarray[Any, Any] | None = None
        self._began = time.time()
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, dtype=np.int64)

    def step_async(self, actions: np.ndarray[Any, Any]) -> None:
        self._action = actions

    def _pop_action(self) -> np.ndarray[Any, Any]:
        if self._action is None:
            raise RuntimeError("step_wait was called without step_async")
        action, self._action = self._action, None
        return action

    def _begin(self) -> None:
        self._returns[:] = 0
        self._lengths[:] = 0
        self._reset_seeds()
        self._reset_options()

    def _count(self, rewards: np.ndarray[Any, Any]) -> None:
        self._returns += rewards
        self._lengths += 1

    def _counts(self, index: int) -> dict[str, Any]:
        """Return and length of one environment's episode, in the format of `Monitor`."""
        elapsed = round(time.time() - self._began, 6)
        return {"r": float(self._returns[index]), "l": int(self._lengths[index]), "t": elapsed}

    def _end(self, dones: np.ndarray[Any, Any]) -> None:
        self._returns[dones] = 0
        self._lengths[dones] = 0

    def _next_seed(self) -> int | None:
        """Seeds the first environment at the next reset; the others get the following numbers."""
        return None if self._seeds[0] is None else int(self._seeds[0])  # gymnasium refuses NumPy integers

    def _next_options(self) -> dict[str, Any] | None:
        if any(options != self._options[0] for options in self._options):
            raise ValueError(
                "all environments are reset at once: set_options takes one dictionary, not one for each environment"
            )
        return self._options[0] or None

    def _require_all(self, call: str, indices: VecEnvIndices) -> list[int]:
        """`indices` as a list, for a call that reaches every environment.

        Raises:
            ValueError: they are not all environments.
        """
        chosen = list(self._get_indices(indices))
        if sorted(chosen) != list(range(self.num_envs)):
            raise ValueError(
                f"{call} for the environments {chosen} alone is not possible: {self._env_name()} moves its "
                f"{self.num_envs} environments together; leave out indices"
            )
        return chosen

    def _env_name(self) -> str:
        raise NotImplementedError

    def render(self, mode: str | None = None) -> np.ndarray[Any, Any] | None:
        """As in SB3, but "human" shows a pygame window and needs no OpenCV."""
        if mode != "human" or self.render_mode != "rgb_array":
            return super().render(mode)
        import pygame  # imported late: it prints a greeting

        picture = tile_images([image for image in self.get_images() if image is not None])
        pygame.display.init()
        window = pygame.display.set_mode(picture.shape[1::-1])
        window.blit(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        return None


class TensorVecEnv(_Counted):
    """A `TensorEnv` seen as an SB3 `VecEnv`: numpy in and out.

    With it SB3's `evaluate_policy`, `EvalCallback` and `VecNormalize` accept environments from `make_env`. For
    environments on the host it returns the wrapped `VecEnv`, with the environments' own values.

    The environments of a `TensorEnv` are one object. `get_attr` returns one row per environment for attributes in
    `state_names`, and the same value for all others. `set_attr` and `env_method` reach all environments at once; other
    `indices` raise a ValueError.

    Raises:
        TypeError: `tensor_env` is not a `TensorEnv`.
    """

    def __new__(cls, tensor_env: TensorEnv | None = None) -> Any:
        beneath = getattr(tensor_env, "vec_env", None)
        return super().__new__(cls) if beneath is None else beneath

    def __init__(self, tensor_env: TensorEnv) -> None:
        if not isinstance(tensor_env, TensorEnv):
            raise TypeError(
                f"TensorVecEnv got a {type(tensor_env).__name__}, expected a TensorEnv, as agents.make_env gives: "
                "SB3 accepts other environments directly"
            )
        self.tensor_env = tensor_env  # first, because the base class reads its render mode
        super().__init__(tensor_env.num_envs, tensor_env.single_observation_space, tensor_env.single_action_space)
        self.render_mode = "rgb_array"  # `frame` draws in any mode
        self.metadata = {"render_modes": ["human", "rgb_array"]}

    def _env_name(self) -> str:
        return type(self.tensor_env).__name__

    def reset(self) -> VecEnvObs:
        obs, info = self.tensor_env.reset(seed=self._next_seed(), options=self._next_options())
        self.reset_infos = infos_of_obs(info, self.num_envs)
        self._begin()
        return as_numpy(obs)  # type: ignore[no-any-return]

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds the shared generator of all environments at the next reset; None: the generator is not seeded."""
        self._seeds = [seed] * self.num_envs
        return self._seeds

    def step_wait(self) -> VecEnvStepReturn:
        action = torch.as_tensor(self._pop_action(), device=self.tensor_env.device)
        self.tensor_env.user_moves += 1
        obs, reward, terminated, truncated, info = self.tensor_env.step(action)
        rewards = reward.cpu().numpy()
        self._count(rewards)
        infos = infos_of_step(info, terminated, truncated, self._counts)
        dones = (terminated | truncated).cpu().numpy()
        begun = infos_of_obs(info, self.num_envs) if dones.any() else []
        for index in np.flatnonzero(dones):
            self.reset_infos[index] = begun[index]
        self._end(dones)
        return as_numpy(obs), rewards, dones, infos

    def close(self) -> None:
        self.tensor_env.close()

    def get_images(self) -> Sequence[np.ndarray[Any, Any] | None]:
        return [self.tensor_env.frame(index) for index in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        if attr_name == "action_masks":  # as read by sb3-contrib
            self._masks()
            return [lambda index=index: self._masks()[index] for index in self._get_indices(indices)]
        value = getattr(self.tensor_env, attr_name)
        if attr_name in self.tensor_env.state_names:
            rows = value.cpu().numpy().copy()
            return [rows[index] for index in self._get_indices(indices)]
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        if attr_name in self.tensor_env.state_names:
            state = getattr(self.tensor_env, attr_name)
            state[list(self._get_indices(indices))] = torch.as_tensor(value, dtype=state.dtype, device=state.device)
            return
        self._require_all(f"set_attr({attr_name!r})", indices)
        setattr(self.tensor_env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method of the batch once. A result with one entry per environment is split; any other result is
        returned for each environment."""
        if method_name == "action_masks":
            return [self._masks()[index] for index in self._get_indices(indices)]
        wanted = self._require_all(f"env_method({method_name!r})", indices)
        if method_name == "step":
            raise ValueError("env_method('step') would go past this VecEnv: call its own step with all actions")
        result = getattr(self.tensor_env, method_name)(*method_args, **method_kwargs)
        if method_name == "reset":
            self._begin()
            return [(row(as_numpy(result[0]), index), {}) for index in wanted]
        if isinstance(result, torch.Tensor):
            result = result.cpu().numpy() if result.ndim else result.item()
        each = isinstance(result, (tuple, list, np.ndarray)) and len(result) == self.num_envs
        return [result[index] if each else result for index in wanted]

    def _masks(self) -> np.ndarray[Any, Any]:
        """The current action mask, `[num_envs, choices]`.

        Raises:
            AttributeError: the environment gives no masks.
        """
        if not self.tensor_env.started:
            self.tensor_env.reset()
        masks = self.tensor_env.describe().get("action_mask")
        if masks is None:
            raise AttributeError(f"{self._env_name()} gives no action masks")
        return masks.cpu().numpy().astype(bool)  # type: ignore[no-any-return]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """True for `Monitor`: episodes are counted in the same way."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


class VectorSteps(Protocol):
    """A Gymnasium vector environment at `SAME_STEP`, as `VectorVecEnv` uses it; see `agents.environments.hosts`."""

    env: VectorEnv[Any, Any, Any]
    watch: Watch
    info: dict[str, Any]

    @property
    def num_envs(self) -> int: ...

    @property
    def observation_space(self) -> spaces.Space[Any]: ...

    @property
    def action_space(self) -> spaces.Space[Any]: ...

    def reset(self, seed: int | None, options: dict[str, Any] | None = None) -> Any: ...

    def reset_infos(self) -> list[dict[str, Any]]: ...

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, Any]: ...

    def infos(self) -> list[dict[str, Any]]: ...


class VectorVecEnv(_Counted):
    """A Gymnasium vector environment as an SB3 `VecEnv`, with its own action and observation values.

    `get_attr`, `set_attr`, `env_method` and `env_is_wrapped` reach the environments themselves. A vector environment
    that cannot reach single ones (`AsyncVectorEnv`) refuses other `indices` than all with a ValueError.
    """

    def __init__(self, source: VectorSteps) -> None:
        self.source = source
        self._batch: Any = source.env.unwrapped
        self._single: list[Any] | None = getattr(self._batch, "envs", None)
        if self._single is not None:
            self.envs = self._single
        super().__init__(source.num_envs, source.observation_space, source.action_space)

    def _env_name(self) -> str:
        return type(self._batch).__name__

    def reset(self) -> VecEnvObs:
        obs: VecEnvObs = self.source.reset(self._next_seed(), self._next_options())
        self.source.watch.note(obs, self.source.info)
        self.reset_infos = self.source.reset_infos()
        self._begin()
        return obs

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, terminated, truncated, _ = self.source.step(np.asarray(self._pop_action()))
        self.source.watch.note(obs, self.source.info)
        rewards, dones = np.asarray(rewards, dtype=np.float32), np.asarray(terminated | truncated)
        self._count(rewards)
        infos = self.source.infos()
        begun = self.source.reset_infos() if dones.any() else []
        for index in np.flatnonzero(dones):
            if episode_counts(infos[index]) is None:
                infos[index]["episode"] = self._counts(int(index))
            self.reset_infos[index] = begun[index]
        self._end(dones)
        return obs, rewards, dones, infos

    def close(self) -> None:
        self.source.env.close()

    def get_images(self) -> Sequence[np.ndarray[Any, Any] | None]:
        pictures: Any = self.source.env.render()
        return list(pictures) if pictures is not None else [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        if self._single is not None:
            return [self._single[index].get_wrapper_attr(attr_name) for index in self._get_indices(indices)]
        if hasattr(type(self._batch), "get_attr"):
            values = self._batch.get_attr(attr_name)
            return [values[index] for index in self._get_indices(indices)]
        value = getattr(self._batch, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        if self._single is not None:
            for index in self._get_indices(indices):
                self._single[index].set_wrapper_attr(attr_name, value)
            return
        self._require_all(f"set_attr({attr_name!r})", indices)
        if hasattr(type(self._batch), "set_attr"):
            self._batch.set_attr(attr_name, [value] * self.num_envs)
        else:
            setattr(self._batch, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        if self._single is not None:
            methods = [self._single[index].get_wrapper_attr(method_name) for index in self._get_indices(indices)]
            results = [method(*method_args, **method_kwargs) for method in methods]
        else:
            wanted = self._require_all(f"env_method({method_name!r})", indices)
            if not hasattr(type(self._batch), "call"):
                raise ValueError(f"env_method cannot reach the single environments of {self._env_name()}")
            every = self._batch.call(method_name, *method_args, **method_kwargs)
            results = [every[index] for index in wanted]
        if method_name in ("reset", "step"):  # the observations are stale now
            self.source.watch.note(None)
        return results

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        wanted = self._get_indices(indices)
        if wrapper_class is Monitor:  # episodes are counted as it does
            return [True for _ in wanted]
        if self._single is not None:
            return [is_wrapped(self._single[index], wrapper_class) for index in wanted]
        raise ValueError(
            f"{self._env_name()} cannot say whether its environments are wrapped in {wrapper_class.__name__}"
        )
