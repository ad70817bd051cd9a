"""PPO: several passes of clipped updates over each rollout, with the memory replayed from its stored state.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7. Minibatches and replay are those of
`agents.replaying`, so the probability ratio of the first minibatch is 1 up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from agents.common.arguments import Count, Fraction, NotNegative, Positive, Rate, Whole
from agents.hyperparameters import Hyperparameters
from agents.registry import register_learner
from agents.replaying import Number, ReplayLearner
from agents.rollout import Rollout
from agents.scale import distributed


@dataclass
class PPOConfig(Hyperparameters):
    """PPO's hyper-parameters, in SB3's order. `n_minibatches` replaces SB3's `batch_size`, because a memory learns from
    whole sequences."""

    learning_rate: Rate = 3e-4
    n_steps: Whole = 128
    n_minibatches: Count | None = None
    """Number of minibatches per pass; each is a set of at least one environment. None: 4 on a CPU (`train.py` without a
    recipe: 2) and 1 on a GPU, where a small minibatch needs as many kernel launches as a large one. Fewer minibatches
    mean fewer updates per rollout: set a number for equal training on CPU and GPU."""
    n_epochs: Count = 10
    """Passes (epochs) over each rollout."""
    gamma: Fraction = 0.99
    gae_lambda: Fraction = 0.95
    clip_range: Positive = 0.2
    """Clip range of the probability ratio around 1."""
    clip_range_vf: Positive | None = None
    """Clip range of the change of the values; None: no clipping."""
    normalize_advantage: bool = True
    normalize_values: bool = True
    normalize_obs: bool = False
    ent_coef: NotNegative = 0.0
    vf_coef: NotNegative = 0.5
    aux_coef: NotNegative = 1.0
    max_grad_norm: Positive = 0.5
    target_kl: Positive | None = None
    """End the passes over a rollout after one whose mean approximate KL divergence exceeds 1.5 times this. None: no
    limit. The check costs one synchronisation per pass."""
    reward_scale: Positive = 1.0
    target_coef: NotNegative = 0.0

    schedules: ClassVar[tuple[str, ...]] = ("learning_rate", "clip_range", "clip_range_vf")
    run_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "n_minibatches": 2,
        "ent_coef": 0.001,
        "anneal": True,
    }
    gpu_defaults: ClassVar[Mapping[str, Any]] = {"n_minibatches": 1}


@register_learner("ppo")
class PPO(ReplayLearner):
    """Proximal policy optimisation with a memory; arguments as in Stable-Baselines3's PPO, except `n_minibatches`.

    Arguments: those of `PPOConfig`, then those of `agents.hyperparameters.Setup`.

    >>> model = PPO("MemoryPolicy", "Engram/RepeatFirst-v0", n_steps=32, policy_kwargs={"memory": "gru"}, seed=0)
    >>> model.learn(64).num_timesteps
    64
    """

    config_class = PPOConfig

    clip_range: float | Schedule
    clip_range_vf: float | Schedule | None
    target_kl: float | None

    def learn_from(self, rollout: Rollout) -> dict[str, Tensor]:
        """`n_epochs` passes over the rollout; the metrics are means over all minibatches."""
        clip = self.scheduled("clip_range", self.clip_range)
        clip_vf = self.scheduled("clip_range_vf", self.clip_range_vf)
        stop_early = None if self.target_kl is None else self._kl_too_large
        metrics = self.run_epochs(rollout, clip, clip_vf, stop_early=stop_early)
        self.logger.record("train/clip_range", clip)
        return metrics

    def _kl_too_large(self, means: dict[str, Tensor]) -> bool:
        assert self.target_kl is not None
        return bool(distributed.mean(means["train/approx_kl"]) > 1.5 * self.target_kl)

    def policy_loss(self, ratio: Tensor, advantages: Tensor, clip: Number) -> Tensor:
        """The clipped surrogate, for probability ratios and advantages `[T, n]`."""
        return -torch.min(advantages * ratio, advantages * _within(ratio, 1 - clip, 1 + clip)).mean()

    def loss(  # type: ignore[override]
        self, rollout: Rollout, clip: Number, clip_vf: Number | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        evaluation, losses = self.evaluate_actions(rollout)
        advantages = self.advantages(rollout)
        log_ratio = evaluation.log_prob - rollout.log_probs
        ratio = log_ratio.exp()
        policy_loss = self.policy_loss(ratio, advantages, clip)
        values = self.normalized(evaluation.value)
        if clip_vf is not None:
            before = self.normalized(rollout.values)
            values = before + _within(values - before, -clip_vf, clip_vf)
        value_loss = F.mse_loss(values, self.normalized(rollout.returns))
        entropy = evaluation.entropy.mean()
        auxiliary, memory_losses = self.auxiliary(losses)
        loss = policy_loss + self.vf_coef * value_loss - self.ent_coef * entropy + auxiliary
        with torch.no_grad():
            approx_kl = (ratio - 1 - log_ratio).mean()  # Schulman 2020, "Approximating KL divergence": k3
            clip_fraction = ((ratio - 1).abs() > clip).float().mean()
        return loss, {
            "train/loss": loss,
            "train/policy_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/entropy": entropy,
            "train/approx_kl": approx_kl,
            "train/clip_fraction": clip_fraction,
            **memory_losses,
        }


def _within(x: Tensor, low: Number, high: Number) -> Tensor:
    bounds: Any = (low, high)  # torch's types take two numbers or two tensors
    clamped: Tensor = x.clamp(*bounds)
    return clamped
