"""A2C: one update per rollout, back-propagated through the rollout's own graph.

Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", in its synchronous form. The rollout is
recorded (`Memory.record`): memories with a tape need no second forward pass, others process the rollout once more, as a
sequence. The heads are evaluated once, for all steps together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from agents.collect import Collector, StepCollector
from agents.common.arguments import Fraction, NotNegative, Positive, Rate, Whole
from agents.hyperparameters import Hyperparameters
from agents.learner import MemoryOnPolicyAlgorithm
from agents.registry import register_learner
from agents.rollout import Rollout


@dataclass
class A2CConfig(Hyperparameters):
    """A2C's hyper-parameters, with SB3's defaults."""

    learning_rate: Rate = 7e-4
    n_steps: Whole = 5
    gamma: Fraction = 0.99
    gae_lambda: Fraction = 1.0
    ent_coef: NotNegative = 0.0
    vf_coef: NotNegative = 0.5
    aux_coef: NotNegative = 1.0
    max_grad_norm: Positive = 0.5
    rms_prop_eps: Positive = 1e-5
    """Epsilon in the denominator of RMSprop."""
    use_rms_prop: bool = True
    """Use SB3's RMSprop (alpha 0.99). Off: the policy's optimiser, which is Adam unless policy_kwargs sets another."""
    adam_eps: Positive = 1e-5
    """Epsilon in the denominator of Adam, used if RMSprop is off."""
    squares_coef: NotNegative = 0.0
    """Weight of the sum of squared action probabilities in the loss, for Discrete actions. The released program of
    differentiable plasticity uses it instead of an entropy bonus to keep the policy random."""
    normalize_advantage: bool = False
    normalize_values: bool = True
    normalize_obs: bool = False
    reward_scale: Positive = 1.0
    target_coef: NotNegative = 0.0

    fixed: ClassVar[tuple[str, ...]] = (*Hyperparameters.fixed, "rms_prop_eps", "use_rms_prop", "adam_eps")
    run_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 2e-3,
        "n_steps": 16,
        "gae_lambda": 0.95,
        "ent_coef": 0.001,
        "max_grad_norm": 0.1,
        "use_rms_prop": False,
        "anneal": True,
    }


@register_learner("a2c")
class A2C(MemoryOnPolicyAlgorithm):
    """Advantage actor-critic with a memory; arguments as in Stable-Baselines3's A2C.

    Arguments: those of `A2CConfig`, then those of `agents.hyperparameters.Setup`.

    Raises:
        ValueError: `squares_coef` is given, and the actions are not `Discrete`; or as the base class.

    >>> model = A2C("MemoryPolicy", "Engram/RepeatFirst-v0", policy_kwargs={"memory": "gru"}, seed=0)
    >>> model.learn(100).num_timesteps
    100
    """

    config_class = A2CConfig

    squares_coef: float
    use_rms_prop: bool
    rms_prop_eps: float
    adam_eps: float

    def _setup_model(self) -> None:
        if self.squares_coef and not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(
                f"squares_coef is {self.squares_coef:g}, but the actions are {type(self.action_space).__name__}: only "
                "Discrete actions have one probability each; set it to 0 and use ent_coef"
            )
        super()._setup_model()

    @property
    def policy_arguments(self) -> dict[str, Any]:
        arguments = super().policy_arguments
        if "optimizer_class" in arguments:
            return arguments
        if self.use_rms_prop:
            arguments["optimizer_class"] = torch.optim.RMSprop
            defaults = {"alpha": 0.99, "eps": self.rms_prop_eps, "weight_decay": 0}
        else:
            defaults = {"eps": self.adam_eps, "fused": True}
        arguments["optimizer_kwargs"] = defaults | (arguments.get("optimizer_kwargs") or {})
        return arguments

    def collector(self) -> Collector:
        return StepCollector(self, targets=self.target_coef > 0, graph=True, values=True)

    def squares(self, rollout: Rollout) -> Tensor:
        """The mean over a rollout of Σ_a π(a)²: 1/n if all n actions are equally probable, 1 if one is certain.

        Source: Miconi et al. 2018, `maze/maze.py`, which adds it to the loss with weight 0.1.
        """
        assert rollout.latents is not None
        probabilities = self.policy.action_probabilities(rollout.latents, rollout.grids, rollout.masks)
        assert probabilities is not None
        return probabilities.square().sum(-1).mean()

    def learn_from(self, rollout: Rollout) -> dict[str, Tensor]:
        """One update, which consumes the rollout's graph."""
        squares = self.squares(rollout) if self.squares_coef else None
        evaluation, losses = self.evaluate_actions(rollout)
        policy_loss = -(self.advantages(rollout) * evaluation.log_prob).mean()
        value_loss = F.mse_loss(self.normalized(evaluation.value), self.normalized(rollout.returns))
        entropy = evaluation.entropy.mean()
        auxiliary, memory_losses = self.auxiliary(losses)
        loss = policy_loss + self.vf_coef * value_loss - self.ent_coef * entropy + auxiliary
        if squares is not None:
            loss = loss + self.squares_coef * squares
        grad_norm = self.update(loss)
        rollout.drop_graph()
        return {
            "train/loss": loss,
            "train/policy_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/entropy": entropy,
            "train/grad_norm": grad_norm,
            **memory_losses,
        }
