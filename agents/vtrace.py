"""V-trace: the actor-critic of IMPALA, for rollouts that an older policy collected.

Espeholt et al. 2018, "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures",
section 4. Collecting and learning alternate here, so the policy that learns differs from the one that acted only
from the second update of a rollout on. V-trace corrects for this by truncated importance ratios, where PPO clips its
objective.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.common.arguments import Count, Fraction, NotNegative, Positive, Rate, Whole
from agents.hyperparameters import Hyperparameters
from agents.registry import register_learner
from agents.replaying import Number, ReplayLearner
from agents.returns import vtrace
from agents.rollout import Rollout


@dataclass
class VTraceConfig(Hyperparameters):
    """V-trace's hyper-parameters."""

    learning_rate: Rate = 6e-4
    n_steps: Whole = 20
    n_minibatches: Count = 2
    """Number of minibatches per pass, each a set of environments."""
    n_epochs: Count = 4
    """Passes (epochs) over each rollout."""
    gamma: Fraction = 0.99
    rho_bar: Positive = 1.0
    """Truncation ρ̄ of the importance ratios that weight each step. Higher: less bias, more variance."""
    c_bar: Positive = 1.0
    """Truncation c̄ of the importance ratios that weight later steps. Higher: longer traces, more variance."""
    ent_coef: NotNegative = 0.01
    vf_coef: NotNegative = 0.5
    aux_coef: NotNegative = 1.0
    max_grad_norm: Positive = 0.5
    normalize_advantage: bool = False
    normalize_values: bool = True
    normalize_obs: bool = False
    reward_scale: Positive = 1.0
    target_coef: NotNegative = 0.0

    run_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-3, "num_envs": 16, "anneal": True}


@register_learner("vtrace")
class VTrace(ReplayLearner):
    """Actor-critic with V-trace, the off-policy correction of IMPALA, and a memory.

    Arguments: those of `VTraceConfig`, then those of `agents.hyperparameters.Setup`.

    >>> model = VTrace("MemoryPolicy", "Engram/RepeatFirst-v0", policy_kwargs={"memory": "gru"}, seed=0)
    >>> model.learn(40).num_timesteps
    40
    """

    config_class = VTraceConfig

    rho_bar: float
    c_bar: float

    def learn_from(self, rollout: Rollout) -> dict[str, Tensor]:
        return self.run_epochs(rollout)

    def loss(self, rollout: Rollout, *numbers: Number | None) -> tuple[Tensor, dict[str, Tensor]]:
        evaluation, losses = self.evaluate_actions(rollout)
        with torch.no_grad():
            values, ratio = evaluation.value, (evaluation.log_prob - rollout.log_probs).exp()
            next_values, rewards = rollout.next_values(values), rollout.rewards * self.reward_scale
            returns, advantages = vtrace(
                rewards, values, next_values, rollout.ended(), ratio, self.gamma, self.rho_bar, self.c_bar
            )
            advantages = self.advantages(replace(rollout, advantages=advantages))
        policy_loss = -(advantages * evaluation.log_prob).mean()
        value_loss = F.mse_loss(self.normalized(evaluation.value), self.normalized(returns))
        entropy = evaluation.entropy.mean()
        auxiliary, memory_losses = self.auxiliary(losses)
        loss = policy_loss + self.vf_coef * value_loss - self.ent_coef * entropy + auxiliary
        return loss, {
            "train/loss": loss,
            "train/policy_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/entropy": entropy,
            "train/cut_fraction": (ratio > self.rho_bar).float().mean(),
            **memory_losses,
        }
