"""Shared steps of the learners between a rollout and an optimiser step."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from agents.hyperparameters import schedule_value
from agents.metrics.health import PolicyWatch
from agents.metrics.report import log_metrics, pack_metrics
from agents.returns import gae
from agents.rollout import Rollout
from agents.sb3.training_env import TrainingEnv
from agents.scale import distributed
from policies.heads import ActionEvaluation
from policies.observations import obs_entries


class Updates(TrainingEnv):
    """Evaluates actions, computes and normalises advantages, weights losses and steps the optimiser."""

    gamma: float
    gae_lambda: float
    reward_scale: float
    normalize_advantage: bool
    aux_coef: float
    _n_updates: int
    _first_statistics: Tensor | None = None
    """Whether the rollout's values were computed before there were statistics of returns, bool `[]`."""

    @cached_property
    def policy_watch(self) -> PolicyWatch:
        """Warns of a policy that stays random, stops exploring, or moves too far."""
        return PolicyWatch(self.action_space, getattr(self, "target_kl", None))

    def train(self) -> None:
        """Learns from `self.rollout`, then copies rewards, episode ends and metrics to the host in one transfer."""
        self._update_learning_rate(self.policy.optimizer)
        log_metrics(self, pack_metrics(self, self.learn_and_update_obs_norm(self.rollout)))

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        rate = self.scheduled("learning_rate", self.lr_schedule)
        self.logger.record("train/learning_rate", rate)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate

    def scheduled(self, name: str, schedule: Any) -> Any:
        """The current value of a hyper-parameter that may be a schedule.

        The last rollout may end after `total_timesteps`; schedules get a remaining progress of 0 there, not a negative
        one, for which `lambda left: 3e-4 * left` would be a negative rate.

        Raises:
            ValueError: the schedule's value is of the wrong type or out of the hyper-parameter's range.
        """
        if not callable(schedule):
            return schedule
        left = max(self._current_progress_remaining, 0.0)
        return schedule_value(self.config_class, name, schedule, left)

    def learn_from(self, rollout: Rollout) -> dict[str, Tensor]:
        """Updates the policy; returns the metrics by their log names, still on the device."""
        raise NotImplementedError

    def learn_and_update_obs_norm(self, rollout: Rollout) -> dict[str, Tensor]:
        """`learn_from`, then the statistics of observations: acting and all replays of a rollout use the same ones."""
        metrics = self.learn_from(rollout)
        norm = self.policy.obs_norm
        if norm is not None:
            parts, dtype = obs_entries(rollout.obs), norm.count.dtype
            norm.update({name: distributed.moments(parts[name].to(dtype), (0, 1)) for name in norm.names})
        return metrics

    def evaluate_actions(self, rollout: Rollout) -> tuple[ActionEvaluation, dict[str, Tensor]]:
        """Values, log-probabilities, entropies and the memory's losses of a rollout, `[T, N]`, with their graph; with
        `target_coef` also the loss "target", of a rollout's right actions."""
        if rollout.latents is not None:
            latents, grids, losses = rollout.latents, rollout.grids, rollout.losses
            evaluation = self.policy.evaluate_latents(latents, rollout.actions, grids, rollout.masks)
        else:
            evaluation, unrolled = self.policy.evaluate_actions(
                rollout.obs, rollout.actions, rollout.state, rollout.starts, rollout.resets, rollout.masks
            )
            latents, grids, losses = unrolled.outputs, unrolled.grids, unrolled.losses
        if self.target_coef:
            losses = {**losses, "target": self.target_loss(rollout, latents, grids)}
        return evaluation, losses

    def target_loss(self, rollout: Rollout, latents: Tensor, grids: Tensor | None) -> Tensor:
        """The mean of `-log_prob(target)` over a rollout, weighted by its `weights`.

        Args:
            rollout: with targets and weights.
            latents, grids: the memory's outputs `[T, N, F]` and maps `[T, N, C, H, W]`, with their graph.
        """
        assert rollout.targets is not None
        assert rollout.weights is not None
        per_part = rollout.weights.dim() == 3  # a weight for every part of the answer
        targets = self.policy.actions.from_env(rollout.targets)
        log_prob = self.policy.log_prob(latents, targets, grids, per_part, rollout.masks)
        total_weight = distributed.mean(rollout.weights.sum()).clamp(min=1e-8)  # of all ranks, divided by their number
        return -(rollout.weights * log_prob).sum() / total_weight

    def advantages(self, rollout: Rollout) -> Tensor:
        """A rollout's advantages, normalised if `normalize_advantage` is set and there is more than one."""
        advantages = self.normalized(rollout.advantages)
        if not self.normalize_advantage or advantages.numel() * distributed.size() == 1:
            return advantages
        mean, std = distributed.mean_and_std(advantages)
        return (advantages - mean) / (std + 1e-8)

    def normalized(self, values: Tensor) -> Tensor:
        """Values, returns or advantages in normalised units, up to a constant."""
        norm = self.policy.value_norm
        return values if norm is None else values / norm.std

    def compute_advantages(self, rollout: Rollout) -> None:
        """Computes a rollout's advantages and returns by generalised advantage estimation, and updates the statistics
        of the returns."""
        rewards, values = rollout.rewards * self.reward_scale, rollout.values
        next_values = rollout.next_values(values)
        rollout.advantages = gae(rewards, values, next_values, rollout.ended(), self.gamma, self.gae_lambda)
        rollout.returns = rollout.advantages + values
        norm = self.policy.value_norm
        if norm is not None:
            self._first_statistics = norm.weight == 0
            norm.update(*distributed.moments(rollout.returns), self.policy.value_net)

    def convert_first_values(self, rollout: Rollout) -> None:
        """Converts the values of the first rollout to those that the critic gives now.

        The first statistics of returns change what the head's output means (`ValueNorm.update`).
        """
        norm = self.policy.value_norm
        if norm is not None and self._first_statistics is not None:
            for old in (rollout.values, rollout.last_values, rollout.final_values):
                old.copy_(torch.where(self._first_statistics, norm(old), old))
            self._first_statistics = None  # a learner may pass over a rollout again

    def diagnostics(self, rollout: Rollout) -> dict[str, Tensor]:
        """The learner's diagnostics of a rollout by their log names."""
        mean, variance, _ = distributed.moments(rollout.returns)
        rounding = 1e-10 * (mean.square() + variance) + 1e-30  # equal returns have a variance of this order
        residual = distributed.variance(rollout.returns - rollout.values)
        return {"train/explained_variance": 1 - residual / torch.maximum(variance, rounding)}

    def auxiliary(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The memory's own losses and "target": their weighted sum, and each mean by its log name."""
        own = dict(losses)
        target = own.pop("target", None) if self.target_coef else None
        means = {f"train/{name}_loss": loss.mean() for name, loss in own.items()}
        total = self.aux_coef * sum(means.values(), torch.zeros((), device=self.device))
        if target is None:
            return total, means
        return total + self.target_coef * target, {**means, "train/target_loss": target}

    def update(self, loss: Tensor) -> Tensor:
        """One optimiser step; returns the gradient's norm before clipping."""
        self.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        distributed.average_gradients(self.policy.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        self._n_updates += 1
        return norm
