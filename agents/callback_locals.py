"""What callbacks read in `locals`: SB3's names, brought from the device when somebody looks.

A callback that reads `self.locals["rewards"]` gets the numpy array that SB3 would give it; one that does not costs no
synchronisation with the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents import distributed
from agents.environments.infos import as_numpy, of_tensors
from envs.tensor_env import Info, Obs
from policies.memories.base import MemoryStep

if TYPE_CHECKING:
    from agents.on_policy import MemoryOnPolicyAlgorithm


class Later:
    """A value that is made when somebody looks, once.

    `Locals` hands out the value itself. A callback that was never told of the start of training keeps a plain
    dictionary and meets this object, which numpy takes as an array.
    """

    __slots__ = ("_make", "_value")

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make: Callable[[], Any] | None = make

    @property
    def value(self) -> Any:
        if self._make is not None:
            self._value = self._make()
            self._make = None
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
    """A callback's `locals`: gives a `Later` as its value."""

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return value.value if isinstance(value, Later) else value

    def get(self, name: str, default: Any = None) -> Any:
        value = super().get(name, default)
        return value.value if isinstance(value, Later) else value

    def __iter__(self) -> Iterator[str]:  # dict(locals) then reads item by item
        return super().__iter__()

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]

    def copy(self) -> dict[str, Any]:
        return dict(self.items())


def of_step(
    model: MemoryOnPolicyAlgorithm,
    t: int,
    step: MemoryStep,
    obs: Obs,
    mask: Tensor | None,
    action: Tensor,
    new_obs: Obs,
    rewards: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    info: Info,
) -> dict[str, Any]:
    """What SB3's `collect_rollouts` knows after step `t`, by SB3's names."""
    policy = model.policy

    def judged() -> tuple[Tensor, Tensor]:
        grid = None if step.grid is None else step.grid.detach()[None]
        with torch.no_grad():
            judgement = policy.judge(
                step.output.detach()[None], action[None], grid, None if mask is None else mask[None]
            )
        return judgement.value[0, :, None], judgement.log_prob[0]

    judgement = Later(judged)
    return {
        "n_steps": t,
        "obs_tensor": obs,
        "actions": Later(lambda: as_numpy(action)),
        "clipped_actions": Later(lambda: policy.to_env(action).cpu().numpy()),
        "values": Later(lambda: judgement.value[0]),
        "log_probs": Later(lambda: judgement.value[1]),
        "new_obs": Later(lambda: deepcopy(info["shown"]) if "shown" in info else as_numpy(new_obs)),
        "rewards": Later(lambda: as_numpy(rewards)),
        "dones": Later(lambda: (terminated | truncated).cpu().numpy()),
        "infos": Later(_infos_of(model, t, info, terminated, truncated)),
    }


def tell(model: MemoryOnPolicyAlgorithm, callback: BaseCallback) -> bool:
    """Tell a callback of every step of a roll-out that was made at once; False where it asks to stop.

    The names are those of `of_step`, without the final observations; values only where the learner judges them.
    """
    rollout, began, going = model.rollout, model.num_timesteps, True
    for t in range(model.n_steps):
        model.num_timesteps += model.all_envs
        known = {"self": model, "rollout": rollout, "rollout_buffer": rollout, "n_rollout_steps": model.n_steps, "t": t}
        callback.update_locals(known | _of_recorded_step(model, t))
        if not callback.on_step():
            going = False
            break
    model.num_timesteps = began + model.n_steps * model.all_envs  # they were made, whoever asked to stop
    if going:
        callback.on_rollout_end()
    return going


def _of_recorded_step(model: MemoryOnPolicyAlgorithm, t: int) -> dict[str, Any]:
    """Nothing of the roll-out is touched before somebody looks: views of tensors on a GPU cost time as well."""
    rollout = model.rollout

    def seen_before(step: int) -> Obs:
        if step == model.n_steps:
            return model._obs
        obs = rollout.obs
        return {name: value[step] for name, value in obs.items()} if isinstance(obs, dict) else obs[step]

    def infos() -> list[dict[str, Any]]:
        info: Info = {} if rollout.said is None else {"is_success": rollout.said[2, t]}
        return _infos_of(model, t, info, rollout.terminated[t], rollout.truncated[t])()

    known = {
        "n_steps": t,
        "obs_tensor": Later(lambda: seen_before(t)),
        "action": Later(lambda: rollout.actions[t]),
        "terminated": Later(lambda: rollout.terminated[t]),
        "truncated": Later(lambda: rollout.truncated[t]),
        "actions": Later(lambda: as_numpy(rollout.actions[t])),
        "clipped_actions": Later(lambda: model.policy.to_env(rollout.actions[t]).cpu().numpy()),
        "new_obs": Later(lambda: as_numpy(seen_before(t + 1))),
        "rewards": Later(lambda: as_numpy(rollout.rewards[t])),
        "dones": Later(lambda: (rollout.terminated[t] | rollout.truncated[t]).cpu().numpy()),
        "infos": Later(infos),
    }
    if not model.learns_from_targets:
        known["values"] = Later(lambda: rollout.values[t, :, None])
        known["log_probs"] = Later(lambda: rollout.log_probs[t])
    return known


def _infos_of(
    model: MemoryOnPolicyAlgorithm, t: int, info: Info, terminated: Tensor, truncated: Tensor
) -> Callable[[], list[dict[str, Any]]]:
    """How to make the list of what the copies say of step `t`."""
    if "infos" in info:
        make: Callable[[], list[dict[str, Any]]] = info["infos"]
        return make
    rollout, episodes = model.rollout, model.episodes

    def counts(index: int) -> dict[str, Any]:
        own = distributed.rank() * model.n_envs + index  # episodes are those of all ranks
        over = (rollout.terminated | rollout.truncated)[:t, index].nonzero()
        since = int(over[-1]) + 1 if len(over) else 0
        before = (0.0, 0) if len(over) else (episodes.returns[own], episodes.lengths[own])
        reward = float(rollout.rewards[since : t + 1, index].double().sum())
        return {"r": before[0] + reward, "l": int(before[1] + t + 1 - since), "t": 0.0}

    return lambda: of_tensors(info, terminated, truncated, counts)
