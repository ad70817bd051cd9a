"""PPO: several passes of clipped updates over each roll-out, replayed through the memory from its stored state.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7. A minibatch is a set of environments with all of
their steps in order, and the memory is unrolled over it from the state in which the roll-out began: nothing is padded,
no state is stale, and the ratio is exactly 1 on the first minibatch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule
from torch import Tensor

from agents.common.arguments import check
from agents.environments import EnvLike
from agents.learner import MemoryOnPolicyAlgorithm
from agents.rollout import Rollout
from agents.scale import distributed
from policies.policy import MemoryActorCriticPolicy

Number = float | Tensor
"""A tensor where a graph is to see other values of it."""


class PPO(MemoryOnPolicyAlgorithm):
    """Proximal policy optimisation with a memory; arguments as in Stable-Baselines3's PPO but for `n_minibatches`.

    Args:
        n_minibatches: into how many sets of environments each pass is cut; with fewer environments than that, one a
            set. It stands where SB3 has `batch_size`, since whole sequences are what a memory learns from.
        n_epochs: passes over each roll-out.
        clip_range: of the ratio; a number or a function of the remaining progress.
        clip_range_vf: of the value's change; None for none.
        target_kl: no further pass once the mean approximate KL of a pass exceeds 1.5 times this; None for never. It
            costs one read from the device a pass.

    The others are explained in the base class.

    >>> model = PPO("MemoryPolicy", "Engram/RepeatFirst-v0", n_steps=32, policy_kwargs={"memory": "gru"}, seed=0)
    >>> model.learn(64).num_timesteps
    64
    """

    def __init__(
        self,
        policy: str | type[MemoryActorCriticPolicy],
        env: EnvLike | None,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        n_minibatches: int = 4,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        normalize_values: bool = True,
        normalize_obs: bool = False,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        aux_coef: float = 1.0,
        max_grad_norm: float = 0.5,
        target_kl: float | None = None,
        reward_scale: float = 1.0,
        fast: str = "auto",
        precision: str = "float32",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        check(**locals())
        self.n_minibatches, self.n_epochs = n_minibatches, n_epochs
        self.clip_range, self.clip_range_vf = clip_range, clip_range_vf
        self.target_kl = target_kl
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            aux_coef=aux_coef,
            max_grad_norm=max_grad_norm,
            normalize_advantage=normalize_advantage,
            normalize_values=normalize_values,
            normalize_obs=normalize_obs,
            reward_scale=reward_scale,
            fast=fast,
            precision=precision,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def _setup_env(self) -> None:
        super()._setup_env()
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
