"""Lazy `locals` for SB3 callbacks: values are copied from the device only when read.

A callback that reads `self.locals["rewards"]` gets the NumPy array that SB3 would give it. A callback that does not
read it causes no synchronisation with the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.environments.infos import as_numpy, infos_of_step
from agents.sb3.training_env import TrainingEnv
from agents.scale import distributed
from envs.tensor_env import Info, Obs
from policies.heads import ActionEvaluation
from policies.memories.contract import MemoryStep


@dataclass(slots=True)
class LazyValue:
    """A value computed on first use, by `make`.

    `Locals` returns the value itself. A callback whose `on_training_start` was never called has an ordinary
    dictionary and sees this object, which numpy accepts as an array.
    """

    make: Callable[[], Any] | None
    _value: Any = None

    @property
    def value(self) -> Any:
        if self.make is not None:
            self._value = self.make()
            self.make = None
        return self._value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.value, dtype)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: Any) -> Any:
        return self.value[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)


class Locals(dict[str, Any]):
    """A callback's `locals`: a dictionary that resolves `Later` values when they are read."""

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return value.value if isinstance(value, LazyValue) else value

    def get(self, name: str, default: Any = None) -> Any:
        value = super().get(name, default)
        return value.value if isinstance(value, LazyValue) else value

    def __iter__(self) -> Iterator[str]:  # dict(locals) then reads item by item
        return super().__iter__()

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]

    def copy(self) -> dict[str, Any]:
        return dict(self.items())


@dataclass(slots=True)
class StepLocals:
    """The locals of SB3's `collect_rollouts` after step `t`: each method returns the local variable of its name.

    Values are read on demand: on a GPU even views of tensors cost time.

    Args:
        model: the learner.
        t: index of the step in the rollout.
        last: memory output, next observation and `info` of the step, if it was just made; None: everything is read from
            the complete rollout.
    """

    model: TrainingEnv
    t: int
    last: tuple[MemoryStep, Obs, Info] | None = None
    _evaluation: ActionEvaluation | None = None

    def as_dict(self) -> dict[str, Any]:
        """The values for a callback's `locals`, by name; complete rollouts of supervised learners have no values."""
        methods = [self.obs_tensor, self.action, self.terminated, self.truncated, self.actions, self.clipped_actions]
        methods += [self.new_obs, self.rewards, self.dones, self.infos]
        methods += [self.values, self.log_probs] if self.last is not None or not self.model.learns_from_targets else []
        known: dict[str, Any] = {method.__name__: LazyValue(method) for method in methods}
        return known | {"n_steps": self.t} | ({} if self.last is None else {"info": self.last[2]})

    def _obs_before(self, step: int) -> Obs:
        if step == self.model.n_steps:
            return self.model.rollout_state.obs
        obs = self.model.rollout.obs
        return {name: value[step] for name, value in obs.items()} if isinstance(obs, dict) else obs[step]

    def obs_tensor(self) -> Obs:
        return self._obs_before(self.t)

    def action(self) -> Tensor:
        return self.model.rollout.actions[self.t]

    def terminated(self) -> Tensor:
        return self.model.rollout.terminated[self.t]

    def truncated(self) -> Tensor:
        return self.model.rollout.truncated[self.t]

    def actions(self) -> Any:
        return as_numpy(self.action())

    def clipped_actions(self) -> Any:
        return self.model.policy.actions.to_env(self.action()).cpu().numpy()

    def new_obs(self) -> Any:
        if self.last is None:
            return as_numpy(self._obs_before(self.t + 1))
        _, obs, info = self.last
        return deepcopy(info["shown"]) if "shown" in info else as_numpy(obs)

    def rewards(self) -> Any:
        return as_numpy(self.model.rollout.rewards[self.t])

    def dones(self) -> Any:
        return (self.terminated() | self.truncated()).cpu().numpy()

    def infos(self) -> list[dict[str, Any]]:
        """Read from a rollout they have no final observations, because a rollout does not store these."""
        stats = self.model.rollout.episode_stats
        info: Info = {} if stats is None else {"is_success": stats[2, self.t]}
        info = info if self.last is None else self.last[2]
        return _infos_of(self.model, self.t, info, self.terminated(), self.truncated())

    def values(self) -> Tensor:
        return self.model.rollout.values[self.t, :, None] if self.last is None else self._evaluated().value[0, :, None]

    def log_probs(self) -> Tensor:
        return self.model.rollout.log_probs[self.t] if self.last is None else self._evaluated().log_prob[0]

    def _evaluated(self) -> ActionEvaluation:
        if self._evaluation is None:
            assert self.last is not None
            out, masks, here = self.last[0], self.model.rollout.masks, slice(self.t, self.t + 1)
            grid = None if out.grid is None else out.grid.detach()[None]
            mask = None if masks is None else masks[here]
            with torch.no_grad():
                latent, actions = out.output.detach()[None], self.model.rollout.actions[here]
                self._evaluation = self.model.policy.evaluate_latents(latent, actions, grid, mask)
        return self._evaluation


def run_callbacks(model: TrainingEnv, callback: BaseCallback) -> bool:
    """Calls a callback for every step of a rollout that was collected at once; False if the callback asks to stop.

    The locals are those of `StepLocals`.
    """
    rollout, began, continues = model.rollout, model.num_timesteps, True
    for t in range(model.n_steps):
        model.num_timesteps += model.all_envs
        known = {"self": model, "rollout": rollout, "rollout_buffer": rollout, "n_rollout_steps": model.n_steps, "t": t}
        callback.update_locals(known | StepLocals(model, t).as_dict())
        if not callback.on_step():
            continues = False
            break
    model.num_timesteps = began + model.n_steps * model.all_envs  # also if a callback stopped early
    if continues:
        callback.on_rollout_end()
    return continues


def _infos_of(model: TrainingEnv, t: int, info: Info, terminated: Tensor, truncated: Tensor) -> list[dict[str, Any]]:
    """SB3's `infos` of step `t`."""
    if "infos" in info:
        return info["infos"]()  # type: ignore[no-any-return]
    rollout, episodes = model.rollout, model.episodes

    def counts(index: int) -> dict[str, Any]:
        own = distributed.rank() * model.n_envs + index  # episodes are those of all ranks
        over = rollout.ended()[:t, index].nonzero()
        since = int(over[-1]) + 1 if len(over) else 0
        before = (0.0, 0) if len(over) else (episodes.returns[own], episodes.lengths[own])
        reward = float(rollout.rewards[since : t + 1, index].cpu().double().sum())
        return {"r": before[0] + reward, "l": int(before[1] + t + 1 - since), "t": 0.0}

    return infos_of_step(info, terminated, truncated, counts)
