"""Finds which tensor first became NaN or infinite, and at which step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.sb3.training_env import TrainingEnv
from agents.scale import distributed
from envs.tensor_env import Obs
from policies.heads import DivergedError
from policies.memories.time.scopes import host_may_read


class NonFiniteError(FloatingPointError):
    """A loss, gradient, parameter or observation became infinite or NaN."""


def raise_if_not_finite(model: TrainingEnv, error: RuntimeError) -> None:
    """Called with the error of a step, such as sampling: returns if neither NaN nor infinity caused it.

    Raises:
        NonFiniteError: one did; the message names the tensor it came from.
    """
    if host_may_read() and (found := first_non_finite(model)):
        raise NonFiniteError(found) from error
    if isinstance(error, DivergedError):  # over finite numbers, which were too large
        largest = max(float(value.abs().max()) for value in _by_name(model.rollout_state.obs).values())
        raise NonFiniteError(
            "action probabilities contain NaN: the policy's logits have diverged after "
            f"{model.num_timesteps} environment steps; the largest number in the observation is {largest:.3g}"
        ) from error


def first_non_finite(model: TrainingEnv) -> str | None:
    """The first NaN or infinite tensor and its step: checks the environment's output, then parameters, then the
    memory."""
    given = {"reward": model.rollout.rewards, **_by_name(model.rollout.obs)}
    for name, value in given.items():
        steps = (~torch.isfinite(value)).flatten(1).any(1).nonzero()
        if len(steps):
            made = int(steps[0]) + (name == "reward")  # a reward comes with the step, an observation before it
            return f"{name} is not finite after {model.rollout_began + made * model.all_envs} environment steps"
    suspects = _by_name(model.rollout_state.obs)
    suspects |= {f"parameter {name}": value for name, value in model.policy.named_parameters()}
    suspects |= {f"memory state {name}": value for name, value in model.rollout_state.memory.items()}
    for name, value in suspects.items():
        if not torch.isfinite(value).all():
            return f"{name} is not finite after {model.num_timesteps} environment steps"
    return None


def refuse_non_finite(model: TrainingEnv, values: dict[str, float]) -> None:
    """Checks an iteration's metrics, which are the same on every rank.

    Raises:
        NonFiniteError: one is infinite or NaN; the message names its origin, on any rank.
    """
    for name, value in values.items():
        if not np.isfinite(value):
            found = _first_of_ranks(model) or f"{name} is not finite after {model.num_timesteps} environment steps"
            raise NonFiniteError(
                f"{found}, seen as {name} = {value} at update {model._n_updates}; if there is nothing wrong with "
                "observations and rewards, lower learning_rate or max_grad_norm"
            )


def _first_of_ranks(model: TrainingEnv) -> str | None:
    """The finding of any rank; environments come before parameters, since an update spreads NaN to all ranks."""
    found = first_non_finite(model)
    if found and distributed.size() > 1:
        found += f" on rank {distributed.rank()}"
    all_found = [each for each in distributed.to_first(found) if each]
    all_found.sort(key=lambda each: each.startswith(("parameter", "memory state")))
    return distributed.from_first(lambda: all_found[0] if all_found else None)


def _by_name(obs: Obs) -> dict[str, Tensor]:
    """The tensors of an observation by their names in messages."""
    return (
        {f"observation {key}": value for key, value in obs.items()} if isinstance(obs, dict) else {"observation": obs}
    )
