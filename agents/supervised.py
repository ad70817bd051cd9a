"""Supervised learning: maximises the log-probability of the right action.

For environments that give the right action (`info["target"]`) and its weight (`info["weight"]`). The heads are those of
A2C and PPO. The log-probability of the right action is minus the cross-entropy for `Discrete`, and minus the summed
binary cross-entropy of all bits or pixels for `MultiBinary`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from agents.collect import Collector, SequenceCollector, StepCollector
from agents.common.arguments import NotNegative, Positive, Rate, Whole
from agents.hyperparameters import Hyperparameters
from agents.learner import MemoryOnPolicyAlgorithm
from agents.registry import register_learner
from agents.rollout import Rollout


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
    """Supervised learning of the right actions, for environments that provide them.

    Each rollout gives one update, by back-propagation through it. The loss is the mean of `-log_prob(target)`, weighted
    by `weight`, plus `aux_coef` times the memory's own losses. The agent acts greedily in training, so that logged
    returns and task metrics are those of its answers. Arguments are those of `SupervisedConfig`, then those of
    `agents.hyperparameters.Setup`; `n_steps=0` is a whole episode of an environment with a fixed horizon.

    Raises:
        ValueError: the environment gives no targets, or `n_steps` is 0 and it has no horizon.

    >>> kwargs = {"memory": "gru"}
    >>> model = Supervised("MemoryPolicy", "Engram/RepeatFirst-v0", n_steps=0, policy_kwargs=kwargs, seed=0)
    >>> model.learn(64).num_timesteps
    64
    """

    config_class = SupervisedConfig
    learns_from_targets: ClassVar[bool] = True
    whole_sequences: bool = True
    """Whether rollouts whose observations do not depend on actions are processed as one sequence; False: step by
    step."""

    def collector(self) -> Collector:
        """A `SequenceCollector` if the observations of a rollout do not depend on its actions, except in CUDA graphs:
        there the generator of the environments cannot be restored."""
        allowed = self.whole_sequences and not self.executor.callbacks_after_rollout
        env = None if self.env is None else self.tensor_env
        if allowed and (env is None or env.ignores_actions or (env.previews and self.n_steps == env.horizon)):
            return SequenceCollector(self, targets=True)
        return StepCollector(self, targets=True, graph=True)

    def learn_from(self, rollout: Rollout) -> dict[str, Tensor]:
        """One update, which consumes the rollout's graph."""
        assert rollout.latents is not None
        target_loss = self.target_loss(rollout, rollout.latents, rollout.grids)
        auxiliary, memory_losses = self.auxiliary(rollout.losses)
        loss = target_loss + auxiliary
        grad_norm = self.update(loss)
        rollout.drop_graph()
        return {"train/loss": loss, "train/target_loss": target_loss, "train/grad_norm": grad_norm, **memory_losses}

    def diagnostics(self, rollout: Rollout) -> dict[str, Tensor]:
        """No explained variance: there is no critic."""
        return {}
