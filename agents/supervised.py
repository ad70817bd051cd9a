"""Supervised: the right action is known, and made more probable.

For tasks whose environment says what would have been right (`info["target"]`) and how much it counts
(`info["weight"]`). The heads are those that A2C and PPO train: the log-probability of the right action is minus the
cross-entropy for `Discrete`, and minus the summed binary cross-entropy of all bits or pixels for `MultiBinary`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.common.arguments import NotNegative, Positive, Rate, Whole
from agents.hyperparameters import Hyperparameters
from agents.learner import MemoryOnPolicyAlgorithm
from agents.registry import register_learner
from agents.rollout import Rollout
from agents.sb3.callback_locals import tell
from agents.scale import distributed
from policies.memories.steps import detach


@dataclass
class SupervisedConfig(Hyperparameters):
    """The supervised learner's hyper-parameters."""

    learning_rate: Rate = 1e-3
    n_steps: Whole = 0
    aux_coef: NotNegative = 1.0
    max_grad_norm: Positive = 10.0
    normalize_obs: bool = False

    run_defaults: ClassVar[Mapping[str, Any]] = {"num_envs": 16}


@register_learner("supervised")
class Supervised(MemoryOnPolicyAlgorithm):
    """One update from every rollout, by back-propagation through it.

    The loss is the mean of `-log_prob(target)` over what is scored, weighted by `weight`, plus `aux_coef` times the
    memory's own losses. While it trains the agent acts greedily, so that returns and the task's own scores in the log
    are those of its answers. Arguments are those of `SupervisedConfig`, then those of `agents.hyperparameters.Setup`;
    `n_steps=0` takes a whole episode where the environment has a fixed horizon.

    Raises:
        ValueError: the environment gives no targets, or `n_steps` is 0 and it has no horizon.

    >>> kwargs = {"memory": "gru"}
    >>> model = Supervised("MemoryPolicy", "Engram/RepeatFirst-v0", n_steps=0, policy_kwargs=kwargs, seed=0)
    >>> model.learn(64).num_timesteps
    64
    """

    config_class = SupervisedConfig
    keeps_graph: ClassVar[bool] = True
    learns_from_targets: ClassVar[bool] = True
    whole_sequences: bool = True
    """Whether rollouts that answers do not change are remembered as one sequence; False: step by step."""

    @property
    def unrolls(self) -> bool:
        """Where answers change nothing that is seen."""
        return self.whole_sequences and (self.env is None or self.tensor_env.ignores_actions)

    def collect_rollouts(  # type: ignore[override]
        self, env: Any, callback: BaseCallback, rollout_buffer: Rollout, n_rollout_steps: int
    ) -> bool:
        """As in the base class; where the environment shows the same whatever is answered, all steps at once.

        The roll-out is then seen first, remembered and answered as one sequence, and at last played with the answers;
        not where the iteration is a graph, in which the environments' generator cannot be turned back.
        """
        if self.graphs is not None or not self.unrolls:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        rollout, policy, tensor_env = rollout_buffer, self.policy, self.tensor_env
        policy.set_training_mode(True)
        self._began = self.num_timesteps
        started = time.perf_counter()
        rollout.begin(detach(self._state))
        before = tensor_env.state_dict()
        self._watch(rollout)
        tensor_env.load_state_dict(before)
        watched = time.perf_counter()
        unrolled = policy.remember_sequence(rollout.obs, rollout.starts, rollout.state, rollout.resets)
        with torch.no_grad():
            maps = None if unrolled.grids is None else unrolled.grids.flatten(0, 1)
            masks = None if rollout.masks is None else rollout.masks.flatten(0, 1)
            answers = policy.act(unrolled.outputs.flatten(0, 1), True, maps, masks)
        rollout.actions = answers.view(n_rollout_steps, tensor_env.num_envs, *answers.shape[1:])
        rollout.latents, rollout.grids, rollout.losses = unrolled.outputs, unrolled.grids, unrolled.losses
        self._state = unrolled.state
        answered = time.perf_counter()
        self.memory_seconds += answered - watched
        for t, action in enumerate(rollout.actions):
            self._obs, rewards, terminated, truncated, info = tensor_env.step(policy.to_env(action))
            rollout.rewards[t], rollout.terminated[t], rollout.truncated[t] = rewards, terminated, truncated
            rollout.hear(t, info)
            self.task_metrics.add(info)
            self._starts, self._may_start = terminated | truncated, "final_obs" in info
        self.scores = self.task_metrics.sums()
        self.env_seconds += time.perf_counter() - answered + watched - started
        return tell(self, callback)

    def _watch(self, rollout: Rollout) -> None:
        """Observations, targets and weights of the roll-out to come, answered with zeros, which change none of them."""
        tensor_env = self.tensor_env
        blank = torch.zeros_like(self.policy.to_env(rollout.actions[0]))
        obs, starts, may_start, info = self._obs, self._starts, self._may_start, tensor_env.describe()
        shown = []
        for t in range(len(rollout.starts)):
            if may_start:
                rollout.resets.append(t)
            rollout.starts[t] = starts
            rollout.write_obs(t, obs)
            shown.append((info["target"], info["weight"]))
            if rollout.masks is not None:
                rollout.masks[t] = info["action_mask"]
            obs, _, terminated, truncated, info = tensor_env.step(blank)
            starts, may_start = terminated | truncated, "final_obs" in info
        rollout.targets, rollout.weights = map(torch.stack, zip(*shown, strict=True))

    def learn_from(self, rollout: Rollout) -> dict[str, Tensor]:
        """One update, which uses up the roll-out's graph."""
        assert rollout.latents is not None
        assert rollout.targets is not None
        assert rollout.weights is not None
        each = rollout.weights.dim() == 3  # a weight for every part of the answer
        targets = self.policy.from_env(rollout.targets)
        log_prob = self.policy.log_prob(rollout.latents, targets, rollout.grids, each, rollout.masks)
        scored = distributed.mean(rollout.weights.sum()).clamp(min=1e-8)  # a rank's share of all that is scored
        target_loss = -(rollout.weights * log_prob).sum() / scored
        auxiliary, memory_losses = self.auxiliary(rollout.losses)
        loss = target_loss + auxiliary
        grad_norm = self.update(loss)
        rollout.latents, rollout.grids, rollout.losses = None, None, {}
        return {"train/loss": loss, "train/target_loss": target_loss, "train/grad_norm": grad_norm, **memory_losses}

    def judge_rollout(self, rollout: Rollout, outputs: list[Tensor], grids: list[Tensor]) -> None:
        """There is no critic and no advantage."""

    def diagnostics(self, rollout: Rollout) -> dict[str, Tensor]:
        """Nothing is explained where nothing is valued."""
        return {}
