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
from policies.observations import batch_size_of
from policies.policy import MemoryActorCriticPolicy


class Agent:
    """Maps observations to actions and keeps the memory's state between calls.

    With SB3's `predict` the caller must pass the state to the next call and mark where episodes start. Here `reset`
    starts an episode and `act` continues it. Observations and actions are NumPy arrays, of one environment or of
    several; the first observation after `reset()` sets their number. It can be copied, and pickled for another process.

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
        self.reset()

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "auto", **kwargs: Any) -> Agent:
        """The agent of a checkpoint, or of the newest one in a run's folder; arguments as in `agents.load`.

        Raises:
            CheckpointError: the checkpoint is missing, damaged, or of another agent.
        """
        return cls(load(path, device=device, **kwargs))

    def reset(self, index: int | Sequence[int] | np.ndarray[Any, Any] | None = None) -> None:
        """Starts a new episode: the memory is reset before the next observation.

        Args:
            index: the environments whose episode is over, as indices or as one bool each (`terminated | truncated`).
                None: all of them; the next observation may then be of another number of environments.

        Raises:
            IndexError: there is no such environment, or `act` was not called yet.
        """
        if index is None:
            self.state: State | None = None
            """The memory's state, `[num_envs, ...]` each; None before the first observation."""
            self.num_envs = 0
            """Number of environments; 0 before the first observation."""
            self._starts = np.zeros(0, bool)
            return
        flags = np.asarray(index)
        if flags.dtype != bool and flags.size == 0:  # no episode is over
            return
        whole = np.issubdtype(flags.dtype, np.integer)
        if flags.dtype != bool and not (whole and (abs(flags + 0.5) < self.num_envs).all()):
            raise IndexError(
                f"reset got the index {index!r}, but this agent plays {self.num_envs} environments: expected indices "
                "below that, or one bool for each"
            )
        if flags.dtype == bool and flags.shape != (self.num_envs,):
            raise IndexError(
                f"reset got flags of shape {flags.shape}, but this agent plays {self.num_envs} environments"
            )
        self._starts[flags] = True

    def act(self, observation: Any, deterministic: bool = False, action_masks: Any = None) -> np.ndarray[Any, Any]:
        """Updates the memory with an observation and chooses an action.

        Args:
            observation: of one environment, or of several along the first dimension; a dictionary of arrays if the
                space is a `Dict`.
            deterministic: take the most probable action instead of a sampled one.
            action_masks: valid choices, `[choices]` or `[num_envs, choices]`; None: all.

        Returns:
            The action for the environment's `step`: `[*action_shape]` (a NumPy number for `Discrete`), or
            `[num_envs, *action_shape]`.

        Raises:
            ValueError: the observation is not in the space, or the number of environments has changed.
        """
        obs, _ = self.policy.obs_to_tensor(observation)
        num_envs = batch_size_of(obs)
        if self.num_envs not in (0, num_envs):
            raise ValueError(
                f"this agent plays num_envs={self.num_envs}, but the observation has {num_envs}: call reset() first"
            )
        if self.num_envs == 0:
            self.num_envs, self._starts = num_envs, np.zeros(num_envs, bool)
        actions, self.state = self.policy.predict(observation, self.state, self._starts, deterministic, action_masks)
        self._starts = np.zeros(num_envs, bool)
        return actions
