"""A2C: one update from every roll-out, through the graph of the roll-out itself.

Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", in its synchronous form. The memory's outputs
keep their graph while the roll-out is collected, so there is no second forward pass through the memory; the heads, a
few large products, are evaluated once for all steps.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from agents.common.arguments import check
from agents.environments import EnvLike
from agents.learner import MemoryOnPolicyAlgorithm
from agents.rollout import Rollout
from policies.policy import MemoryActorCriticPolicy


class A2C(MemoryOnPolicyAlgorithm):
    """Advantage actor-critic with a memory; arguments as in Stable-Baselines3's A2C.

    Those of the base class are explained there. `use_rms_prop=True` gives SB3's RMSprop (alpha 0.99, `rms_prop_eps`);
    False gives the policy's optimiser, Adam unless `policy_kwargs` says otherwise.

    >>> model = A2C("MemoryPolicy", "Engram/RepeatFirst-v0", policy_kwargs={"memory": "gru"}, seed=0)
    >>> model.learn(100).num_timesteps
    100
    """

    keeps_graph: ClassVar[bool] = True

    def __init__(
        self,
        policy: str | type[MemoryActorCriticPolicy],
        env: EnvLike | None,
        learning_rate: float | Schedule = 7e-4,
        n_steps: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        aux_coef: float = 1.0,
        max_grad_norm: float = 0.5,
        rms_prop_eps: float = 1e-5,
        use_rms_prop: bool = True,
        normalize_advantage: bool = False,
        normalize_values: bool = True,
        normalize_obs: bool = False,
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
        policy_kwargs = dict(policy_kwargs or {})
        self.use_rms_prop, self.rms_prop_eps = use_rms_prop, rms_prop_eps
        if use_rms_prop and "optimizer_class" not in policy_kwargs:
            policy_kwargs["optimizer_class"] = torch.optim.RMSprop
            policy_kwargs["optimizer_kwargs"] = {"alpha": 0.99, "eps": rms_prop_eps, "weight_decay": 0}
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

    def learn_from(self, rollout: Rollout) -> dict[str, Tensor]:
        """One update, which uses up the roll-out's graph."""
        judgement, losses = self.judge(rollout)
        policy_loss = -(self.advantages(rollout) * judgement.log_prob).mean()
        value_loss = F.mse_loss(self.normalized(judgement.value), self.normalized(rollout.returns))
        entropy = judgement.entropy.mean()
        auxiliary, memory_losses = self.auxiliary(losses)
        loss = policy_loss + self.vf_coef * value_loss - self.ent_coef * entropy + auxiliary
        grad_norm = self.update(loss)
        rollout.latents, rollout.grids, rollout.losses = None, None, {}
        return {
            "train/loss": loss,
            "train/policy_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/entropy": entropy,
            "train/grad_norm": grad_norm,
            **memory_losses,
        }
