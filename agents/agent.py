"""`Agent`: a trained policy that keeps its own memory state, for notebooks, robots and other programs that only act."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from agents.learner import MemoryOnPolicyAlgorithm
from agents.registry import load
from policies.memories.contract import State
from policies.policy import MemoryActorCriticPolicy


class Agent:
    """Observations in, actions out; what is remembered in between is the agent's own business.

    SB3's `predict` gives the memory's state to the caller, who must hand it back and say where episodes start. Here
    `reset` starts an episode and `act` continues it. Numpy in, numpy out, for one environment or for several:
    the first observation after `reset()` decides.

    Args:
        model: a learner, or its policy.

    >>> import gymnasium, agents
    >>> model = agents.PPO("MemoryPolicy", "CartPole-v1", n_steps=8, device="cpu", seed=0)
    >>> agent, env = agents.Agent(model), gymnasium.make("CartPole-v1")
    >>> observation, info = env.reset(seed=0)
    >>> agent.reset()
    >>> action = agent.act(observation, deterministic=True)
    >>> env.action_space.contains(action)
    True
    """

    def __init__(self, model: MemoryOnPolicyAlgorithm | MemoryActorCriticPolicy) -> None:
        self.policy = model.policy if isinstance(model, MemoryOnPolicyAlgorithm) else model
        self._predict = model.predict
        self.reset()

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "auto", **kwargs: Any) -> Agent:
        """The agent of a checkpoint, or of the newest one in a run's folder; arguments as in `agents.load`.

        Raises:
            CheckpointError: see there.
        """
        return cls(load(path, device=device, **kwargs))

    def reset(self, index: int | Sequence[int] | np.ndarray[Any, Any] | None = None) -> None:
        """Forget: the next observation is the first of an episode.

        Args:
            index: of the environments whose episode is over, where several are played: numbers, or one bool for each,
                as in `terminated | truncated`. None: all of them, and the next observation may be of another number.

        Raises:
            IndexError: there is no such environment, or nothing was observed yet.
        """
        if index is None:
            self.state: State | None = None
            """What the memory holds, `[num_envs, ...]` each; None before the first observation."""
            self.num_envs = 0
            """How many environments it plays; 0 before the first observation."""
            self._starts = np.zeros(0, bool)
            return
        flags = np.asarray(index)
        if flags.dtype == bool and flags.shape != (self.num_envs,):
            raise IndexError(
                f"reset got flags of shape {flags.shape}, but this agent plays {self.num_envs} environments"
            )
        self._starts[flags] = True

    def act(self, observation: Any, deterministic: bool = False, action_masks: Any = None) -> np.ndarray[Any, Any]:
        """Remember an observation and choose an action.

        Args:
            observation: of one environment, or of several along the first dimension; a dictionary of arrays where the
                space is a `Dict`.
            deterministic: the most probable action instead of a sampled one.
            action_masks: which choices are valid, `[choices]` or `[num_envs, choices]`; None: all.

        Returns:
            What the environment's `step` takes: `[*action_shape]`, or `[num_envs, *action_shape]`.

        Raises:
            ValueError: the observation is not in the space, or the number of environments has changed.
        """
        obs, _ = self.policy.obs_to_tensor(observation)
        count = len(next(iter(obs.values()))) if isinstance(obs, dict) else len(obs)
        if self.num_envs not in (0, count):
            raise ValueError(
                f"this agent is playing {self.num_envs} environments, but the observation is of {count}: "
                "call reset() first"
            )
        if self.num_envs == 0:
            self.num_envs, self._starts = count, np.zeros(count, bool)
        actions, self.state = self._predict(observation, self.state, self._starts, deterministic, action_masks)
        self._starts = np.zeros(count, bool)
        return actions
