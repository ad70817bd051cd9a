"""Checks for ordinary Gymnasium environments, as functions."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.environments import as_tensor_env, make_env
from agents.environments.named import find_env
from agents.ppo import PPO
from agents.registry import load
from envs.tensor_env import TensorEnv
from policies.testing.case import expect

MAX_STEPS = 2000
"""Maximum number of steps until an episode must end."""


@dataclass(frozen=True)
class HostEnvCase:
    """An ordinary Gymnasium environment to check."""

    env: str | type[gym.Env[Any, Any]]
    """Its registered id, `module:Id-v0` included, or its class."""
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 40
    """Minimum number of steps to play."""

    def make(self) -> gym.Env[Any, Any]:
        """A single environment, as `gymnasium.make` builds it."""
        return gym.make(find_env(self.env), **self.options) if isinstance(self.env, str) else self.env(**self.options)

    def batch(self) -> TensorEnv:
        """A batch of two, as a learner steps them."""
        if isinstance(self.env, str):
            return make_env(self.env, 2, **self.options)
        return as_tensor_env(SyncVectorEnv([self.make] * 2, autoreset_mode=AutoresetMode.SAME_STEP))

    def agent(self) -> PPO:
        """A small PPO agent."""
        kwargs = {"memory": "gru", "memory_kwargs": {"hidden_size": 8}}
        return PPO(
            "MemoryPolicy", self.batch(), n_steps=16, n_epochs=1, n_minibatches=1, policy_kwargs=kwargs, seed=0,
            device="cpu",
        )  # fmt: skip


def it_passes_the_checker_of_gymnasium(case: HostEnvCase) -> str | None:
    env = case.make()
    if _mask(env, env.reset(seed=0)[1]) is not None:
        return "the checker ignores action masks"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings are advice; errors are raised
        check_env(env.unwrapped, skip_render_check=True)
    return None


def observations_are_in_their_space(case: HostEnvCase) -> str | None:
    """Observations over whole episodes, and finite rewards; skipped with a reason if no episode ends."""
    env = case.make()
    obs, info = env.reset(seed=0)
    env.action_space.seed(0)
    ended = 0
    for step in range(MAX_STEPS):
        expect(env.observation_space.contains(obs), f"the observation after step {step} is not in observation_space")
        if step >= case.steps and ended:
            break
        obs, reward, terminated, truncated, info = env.step(_action(env, info))
        expect(math.isfinite(float(reward)), f"the reward of step {step + 1} is {reward}")
        if terminated or truncated:
            expect(env.observation_space.contains(obs), "the last observation of an episode is not in its space")
            ended += 1
            obs, info = env.reset()
    env.close()
    return None if ended else f"no episode ended in {MAX_STEPS} steps: give arguments that make them short"


def a_seed_fixes_everything(case: HostEnvCase) -> None:
    def play() -> list[Any]:
        env = case.make()
        env.action_space.seed(1)
        obs, info = env.reset(seed=3)
        outputs: list[Any] = [obs]
        for _ in range(case.steps):
            obs, reward, terminated, truncated, info = env.step(_action(env, info))
            outputs.append((obs, float(reward), bool(terminated), bool(truncated)))
            if terminated or truncated:
                obs, info = env.reset()
                outputs.append(obs)
        env.close()
        return outputs

    for step, (first, second) in enumerate(zip(play(), play(), strict=True)):
        expect(data_equivalence(first, second), f"two runs with one seed differ after {step} steps")


def an_agent_learns_from_it(case: HostEnvCase) -> None:
    """Two rollouts and updates, with action masks if there are any."""
    agent = case.agent().learn(64)
    expect(agent.num_timesteps == 64, f"learn(64) took {agent.num_timesteps} steps")


def a_loaded_agent_plays_it(case: HostEnvCase) -> None:
    """It plays by `predict`, with the environment's own observations and actions, and acts like the saved agent."""
    agent = case.agent()
    env = case.make()
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent")
        loaded = load(Path(folder) / "agent", device="cpu")
    obs, info = env.reset(seed=0)
    state = loaded_state = None
    start = np.ones(1, bool)
    for _ in range(case.steps):
        mask = _mask(env, info)
        known = {"episode_start": start, "deterministic": True, "action_masks": mask}
        action, state = agent.predict(obs, state, **known)
        other, loaded_state = loaded.predict(obs, loaded_state, **known)
        expect(np.array_equal(action, other), "the loaded agent does not act like the saved one")
        action = action[()]
        expect(env.action_space.contains(action), f"{action!r} is not in the action space {env.action_space}")
        obs, _, terminated, truncated, info = env.step(action)
        start = np.array([terminated or truncated])
        if start[0]:
            obs, info = env.reset()
    env.close()


def _mask(env: gym.Env[Any, Any], info: dict[str, Any]) -> Any:
    if "action_mask" in info:
        return info["action_mask"]
    return env.unwrapped.action_masks() if hasattr(env.unwrapped, "action_masks") else None


def _action(env: gym.Env[Any, Any], info: dict[str, Any]) -> Any:
    """A random valid action."""
    mask, space = _mask(env, info), env.action_space
    if mask is None:
        return space.sample()
    if isinstance(space, gym.spaces.MultiDiscrete) and not isinstance(mask, tuple):
        mask = tuple(np.split(np.asarray(mask), np.cumsum(space.nvec.ravel())[:-1]))
    parts = mask if isinstance(mask, tuple) else (mask,)
    masks = tuple(np.asarray(part).ravel().astype(np.int8) for part in parts)
    return space.sample(mask=masks if isinstance(space, gym.spaces.MultiDiscrete) else masks[0])


Check = Callable[[HostEnvCase], str | None]
HOST_ENV_CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        it_passes_the_checker_of_gymnasium,
        observations_are_in_their_space,
        a_seed_fixes_everything,
        an_agent_learns_from_it,
        a_loaded_agent_plays_it,
    )
}
"""Every check by its name."""
