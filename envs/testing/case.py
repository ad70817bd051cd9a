"""Helpers of the checks: building an environment, valid actions for it, and errors."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.single_env import SingleEnv, single
from envs.tensor_env import TensorEnv


class ConformanceError(AssertionError):
    """An environment violates its contract."""


@dataclass(frozen=True)
class EnvCase:
    """An environment to check, with arguments that make its episodes short."""

    env: str | type[TensorEnv]
    """Its registered id, `module:Id-v0` included, or its class."""
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 40
    """Steps to play: several episodes."""

    def make(self, num_envs: int = 5, **kwargs: Any) -> TensorEnv:
        """The batched environment."""
        options = self.options | kwargs
        env: Any
        if isinstance(self.env, str):
            module, _, name = self.env.rpartition(":")
            if module:
                importlib.import_module(module)
            spec = gymnasium.spec(name)
            expect(spec.vector_entry_point, f"{self.env} has no vector_entry_point that is a TensorEnv")
            env = gymnasium.make_vec(spec, num_envs=num_envs, vectorization_mode="vector_entry_point", **options)
        else:
            env = self.env(num_envs, **options)
        expect(isinstance(env, TensorEnv), f"{self.env} makes a {type(env).__name__}, expected a TensorEnv")
        return env  # type: ignore[no-any-return]

    def make_single(self, **kwargs: Any) -> SingleEnv:
        """A single environment with NumPy in and out, as built by `gymnasium.make`."""
        options = self.options | kwargs
        env: Any = (
            gymnasium.make(self.env, **options).unwrapped if isinstance(self.env, str) else single(self.env)(**options)
        )
        expect(isinstance(env, SingleEnv), f"{self.env} has no entry_point=envs.single_env.single(...)")
        return env  # type: ignore[no-any-return]

    def actions(self, num_envs: int = 5, steps: int | None = None, seed: int = 1, reset: int = 0) -> list[Tensor]:
        """Random valid actions for the episodes that begin with `reset(seed=reset)`."""
        env = self.make(num_envs)
        env.action_space.seed(seed)
        random = np.random.default_rng(seed)
        info, actions = env.reset(seed=reset)[1], []
        for _ in range(steps or self.steps):
            actions.append(torch.as_tensor(_action(env, info, random), device=env.device))
            info = env.step(actions[-1])[4]
        return actions


def _action(env: TensorEnv, info: dict[str, Any], random: np.random.Generator) -> Any:
    if "action_mask" not in info:
        return env.action_space.sample()
    mask = info["action_mask"].cpu().numpy().astype(bool)
    parts = np.split(mask, np.cumsum(choices_of(env.single_action_space))[:-1], axis=1)
    chosen = np.stack([(part * random.random(part.shape)).argmax(1) for part in parts], 1)
    shape, start = env.single_action_space.shape or (), getattr(env.single_action_space, "start", 0)
    return (chosen.reshape(-1, *shape) + start).astype(env.single_action_space.dtype)


def choices_of(space: spaces.Space[Any]) -> list[int]:
    """The number of choices of each part of an action; empty for continuous actions."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.ravel()]
    return [2] * int(np.prod(space.shape)) if isinstance(space, spaces.MultiBinary) else []


def expect(condition: Any, message: str) -> None:
    """Raises a `ConformanceError` with `message` if `condition` is false."""
    if not condition:
        raise ConformanceError(message)


def leaves(value: Any, path: str = "") -> list[tuple[str, Tensor]]:
    """All tensors in nested tuples, lists and dicts, with their path, such as "/obs/image"."""
    if isinstance(value, Tensor):
        return [(path, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return [leaf for name, child in items for leaf in leaves(child, f"{path}/{str(name).lstrip('/')}")]


def copied(value: Any) -> dict[str, Tensor]:
    """Copies of all tensors of a structure, by path."""
    return {path: leaf.clone() for path, leaf in leaves(value)}


def expect_same(one: Any, other: Any, what: str) -> None:
    """Requires all tensors of two structures to be bit-identical; `what` begins the error message."""
    found, wanted = dict(leaves(one)), dict(leaves(other))
    only = sorted(found.keys() ^ wanted.keys())
    expect(not only, f"{what}: {', '.join(only[:3])} {'is' if len(only) == 1 else 'are'} in only one of them")
    for path, value in found.items():
        same = value.dtype == wanted[path].dtype and torch.equal(value, wanted[path])
        expect(same, f"{what}: {path or 'the observation'} differs")


def to_numpy(obs: Any, index: int | None = None) -> Any:
    """Observations as arrays: of the batch, or of environment `index`."""
    if isinstance(obs, dict):
        return {name: to_numpy(value, index) for name, value in obs.items()}
    return obs.cpu().numpy() if index is None else obs[index].cpu().numpy()


def play(env: TensorEnv, actions: list[Tensor]) -> list[Any]:
    return [env.step(action) for action in actions]


def draws(case: EnvCase) -> bool:
    """Whether the environment draws frames."""
    env = case.make(1)
    env.reset(seed=0)
    try:
        env.frame(0)
    except NotImplementedError:
        return False
    return True
