"""PPO: several passes of clipped updates over each roll-out, replayed through the memory from its stored state.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7. A minibatch is a set of environments with all of
their steps in order, and the memory is unrolled over it from the state in which the roll-out began: nothing is padded,
no state is stale, and the ratio is exactly 1 on the first minibatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule
from torch import Tensor

from agents.common.arguments import Count, Fraction, NotNegative, Positive, Rate, Whole
from agents.hyperparameters import Hyperparameters
from agents.learner import MemoryOnPolicyAlgorithm
from agents.registry import register_learner
from agents.rollout import Rollout
from agents.scale import distributed

Number = float | Tensor
"""A tensor where a graph is to see other values of it."""


@dataclass
class PPOConfig(Hyperparameters):
    """PPO's hyper-parameters, in SB3's order; `n_minibatches` stands where SB3 has `batch_size`, since whole sequences
    are what a memory learns from."""

    learning_rate: Rate = 3e-4
    n_steps: Whole = 128
    n_minibatches: Count | None = None
    """Sets of environments that each pass is cut into; with fewer environments than that, one a set. None: 4, and 1 on
    a GPU, where every set takes as many kernel launches as all environments together. Fewer sets are fewer updates a
    rollout: name a number where runs on a CPU and a GPU are to learn alike."""
    n_epochs: Count = 10
    """Passes over each rollout."""
    gamma: Fraction = 0.99
    gae_lambda: Fraction = 0.95
    clip_range: Positive = 0.2
    """How far the probability ratio may move from 1 in an iteration."""
    clip_range_vf: Positive | None = None
    """How far the value may move in an iteration; None: no limit."""
    normalize_advantage: bool = True
    normalize_values: bool = True
    normalize_obs: bool = False
    ent_coef: NotNegative = 0.0
    vf_coef: NotNegative = 0.5
    aux_coef: NotNegative = 1.0
    max_grad_norm: Positive = 0.5
    target_kl: Positive | None = None
    """No further pass over a rollout once the mean approximate KL of a pass exceeds 1.5 times this; None: never. It
    costs one read from the device a pass."""
    reward_scale: Positive = 1.0

    schedules: ClassVar[tuple[str, ...]] = ("learning_rate", "clip_range", "clip_range_vf")
    run_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "n_minibatches": 2,
        "ent_coef": 0.01,
        "anneal": True,
    }
    gpu_defaults: ClassVar[Mapping[str, Any]] = {"n_minibatches": 1}


@register_learner("ppo")
class PPO(MemoryOnPolicyAlgorithm):
    """Proximal policy optimisation with a memory; arguments as in Stable-Baselines3's PPO but for `n_minibatches`.

    They are those of `PPOConfig`, then those of `agents.hyperparameters.Setup`.

    >>> model = PPO("MemoryPolicy", "Engram/RepeatFirst-v0", n_steps=32, policy_kwargs={"memory": "gru"}, seed=0)
    >>> model.learn(64).num_timesteps
    64
    """

    config_class = PPOConfig

    n_minibatches: int | None
    """A number once the learner is built."""
    n_epochs: int
    clip_range: float | Schedule
    clip_range_vf: float | Schedule | None
    target_kl: float | None

    def _setup_model(self) -> None:
        if self.n_minibatches is None:
            self.n_minibatches = 1 if self.device.type == "cuda" else 4
        super()._setup_model()

    def _setup_env(self) -> None:
        super()._setup_env()
        assert self.n_minibatches is not None
        sets = min(self.n_minibatches, self.all_envs)
        if self.n_envs < sets:  # every rank gives its share to every minibatch
            raise ValueError(
                f"n_minibatches is {self.n_minibatches}, but each of the {distributed.size()} ranks has {self.n_envs} "
                f"environments: expected n_minibatches <= {self.n_envs}"
            )

    def learn_from(self, rollout: Rollout) -> dict[str, Tensor]:
        """`n_epochs` passes over the roll-out; the metrics are means over all minibatches."""
        self.policy.set_training_mode(True)
        progress = self._current_progress_remaining
        clip = FloatSchedule(self.clip_range)(progress)
        clip_vf = None if self.clip_range_vf is None else FloatSchedule(self.clip_range_vf)(progress)
        learn = self.learn_minibatch if self.graphs is None else self.graphs.minibatch
        assert self.n_minibatches is not None
        count = min(self.n_minibatches, self.n_envs)
        rows: list[Tensor] = []
        for _ in range(self.n_epochs):
            order = torch.randperm(self.n_envs, device=self.device)
            taken = [learn(rollout, index, clip, clip_vf) for index in order.tensor_split(count)]
            rows += taken
            if self.target_kl is not None:
                kl = torch.stack(taken).mean(0)[self.metric_names.index("train/approx_kl")]
                divergence = distributed.mean(kl)
                if divergence > 1.5 * self.target_kl:
                    break
        self.logger.record("train/clip_range", clip)
        return dict(zip(self.metric_names, torch.stack(rows).mean(0), strict=True))

    def learn_minibatch(self, rollout: Rollout, index: Tensor, clip: Number, clip_vf: Number | None) -> Tensor:
        """One update from the environments `index` `[n]` of a roll-out; gives its metrics, named by `metric_names`."""
        loss, parts = self.loss(rollout.environments(index), clip, clip_vf)
        parts["train/grad_norm"] = self.update(loss)
        self.metric_names = tuple(parts)
        return torch.stack([part.detach().float() for part in parts.values()])

    def loss(self, rollout: Rollout, clip: Number, clip_vf: Number | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one minibatch and its parts by the names they are logged under."""
        judgement, losses = self.judge(rollout)
        advantages = self.advantages(rollout)
        log_ratio = judgement.log_prob - rollout.log_probs
        ratio = log_ratio.exp()
        policy_loss = -torch.min(advantages * ratio, advantages * _within(ratio, 1 - clip, 1 + clip)).mean()
        values = self.normalized(judgement.value)
        if clip_vf is not None:
            before = self.normalized(rollout.values)
            values = before + _within(values - before, -clip_vf, clip_vf)
        value_loss = F.mse_loss(values, self.normalized(rollout.returns))
        entropy = judgement.entropy.mean()
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
    bounds: Any = (low, high)  # numbers or tensors, both
    clamped: Tensor = x.clamp(*bounds)
    return clamped
