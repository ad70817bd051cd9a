"""TensorVecEnv: a `TensorEnv` as Stable-Baselines3's callbacks and `evaluate_policy` see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from torch import Tensor

from envs.tensor_env import Obs, TensorEnv


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
