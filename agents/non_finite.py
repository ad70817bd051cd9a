"""Numbers that are none: which tensor brought the first one, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from envs.tensor_env import Obs

if TYPE_CHECKING:
    from agents.on_policy import MemoryOnPolicyAlgorithm


class NonFiniteError(FloatingPointError):
    """A loss, gradient, parameter or observation became infinite or NaN."""


def first_non_finite(model: MemoryOnPolicyAlgorithm) -> str | None:
    """Which tensor went wrong first and when: what the environment gave, else a parameter, else the memory."""
    given = {"reward": model.rollout.rewards, **_by_name(model.rollout.obs)}
    for name, value in given.items():
        steps = (~torch.isfinite(value)).flatten(1).any(1).nonzero()
        if len(steps):
            made = int(steps[0]) + (name == "reward")  # a reward comes with the step, an observation before it
            return f"{name} is not finite after {model._began + made * model.n_envs} environment steps"
    suspects = _by_name(model._obs)
    suspects |= {f"parameter {name}": value for name, value in model.policy.named_parameters()}
    suspects |= {f"memory state {name}": value for name, value in model._state.items()}
    for name, value in suspects.items():
        if not torch.isfinite(value).all():
            return f"{name} is not finite after {model.num_timesteps} environment steps"
    return None


def _by_name(obs: Obs) -> dict[str, Tensor]:
    """The tensors of an observation by the names that messages use."""
    return (
        {f"observation {key}": value for key, value in obs.items()} if isinstance(obs, dict) else {"observation": obs}
    )
