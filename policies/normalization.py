"""Running normalisation of observations and returns, so that one set of hyper-parameters fits any scale.

The statistics are buffers of the policy, so they are on its device and in every checkpoint. The policy applies them;
learners update them once per iteration. Evaluation does not change them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn

from policies.observations import Obs, entries_of


class ValueNorm(nn.Module):
    """Mean and standard deviation of the critic's returns, so that its head predicts values of order 1.

    The moments are bias-corrected exponential averages over samples, so that they follow growing returns (van Hasselt
    et al. 2016, "Learning values across many orders of magnitude", eq. 5-7; Yu et al. 2022, "The surprising
    effectiveness of PPO", use the same normaliser). Until the first update, values are the head's own output.
    """

    HORIZON = 20_000
    """Number of samples after which the weight of an old one is 1/e."""
    FLOOR = 1e-2
    """Smallest standard deviation, so that nearly constant returns are not amplified."""

    mean: Tensor
    std: Tensor
    variance: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, normalized: Tensor) -> Tensor:
        """Values in the unit of rewards, from the head's output."""
        return torch.addcmul(self.mean, normalized, self.std)

    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor, samples: int, head: nn.Linear) -> None:
        """Updates the moments with new returns.

        Args:
            mean, variance: of the new returns (population variance), `[]`.
            samples: number of new returns.
            head: the critic's head. It is rescaled so that its values do not change (PopArt), except at the first
                update.
        """
        rate = 1 - math.exp(-samples / self.HORIZON)
        weight = self.weight * (1 - rate) + rate
        share = rate / weight
        delta = mean - self.mean
        first = self.weight == 0
        new_mean = self.mean + share * delta
        new_variance = (1 - share) * (self.variance + share * delta * delta) + share * variance
        new_std = new_variance.sqrt().clamp(min=self.FLOOR)
        head.weight.copy_(torch.where(first, head.weight, head.weight * (self.std / new_std)))
        head.bias.copy_(torch.where(first, head.bias, (self.std * head.bias + self.mean - new_mean) / new_std))
        self.weight.copy_(weight)
        self.mean.copy_(new_mean)
        self.variance.copy_(new_variance)
        self.std.copy_(new_std)


class ObsNorm(nn.Module):
    """Running mean and variance of every number in an observation's `Box` entries, except images.

    Other entries (choices, bits) pass unchanged. Normalised numbers are clipped to ±`CLIP`, which also bounds the
    first rollout, for which there are no statistics yet.

    Args:
        space: of one observation.
    """

    CLIP = 10.0
    EPSILON = 1e-8
    count: Tensor

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        numbers = {
            name: entry
            for name, entry in entries_of(space).items()
            if isinstance(entry, spaces.Box) and not is_image_space(entry)
        }
        self.names = tuple(sorted(numbers))
        """Normalised entries; checkpoints do not depend on their order."""
        self.register_buffer("count", torch.zeros(()))
        for index, name in enumerate(self.names):
            self.register_buffer(f"mean{index}", torch.zeros(numbers[name].shape))
            self.register_buffer(f"variance{index}", torch.ones(numbers[name].shape))

    def moments(self, index: int) -> tuple[Tensor, Tensor]:
        """Running mean and variance of the entry `names[index]`."""
        return getattr(self, f"mean{index}"), getattr(self, f"variance{index}")

    def forward(self, obs: Obs) -> Obs:
        """Observations `[..., *shape]`, normalised."""
        if isinstance(obs, Tensor):
            return self._normalized(obs, 0) if self.names else obs
        return {**obs, **{name: self._normalized(obs[name], index) for index, name in enumerate(self.names)}}

    def _normalized(self, x: Tensor, index: int) -> Tensor:
        mean, variance = self.moments(index)
        return ((x.to(mean.dtype) - mean) / (variance + self.EPSILON).sqrt()).clamp(-self.CLIP, self.CLIP)

    @torch.no_grad()
    def update(self, moments: dict[str, tuple[Tensor, Tensor, int]]) -> None:
        """Updates the moments with those of new observations (Chan et al. 1979, eq. 2.1).

        Args:
            moments: mean and population variance by entry, each `[*shape]`, and the number of observations.
        """
        total = self.count
        for index, name in enumerate(self.names):
            mean, variance = self.moments(index)
            new_mean, new_variance, samples = moments[name]
            total = self.count + samples
            share = samples / total
            delta = new_mean - mean
            variance.copy_((1 - share) * (variance + share * delta * delta) + share * new_variance)
            mean.add_(share * delta)
        self.count.copy_(total)


def exchange_value_norm(weights: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Converts a policy's `weights` for a policy with the weights `target`, of which only one has a `ValueNorm`.

    Statistics that `target` lacks are folded into the critic's head, so that values do not change. Statistics that
    `weights` lacks are taken from `target`, with a weight so small that the first update replaces them.
    """
    prefix, head = "value_norm.", "value_net."
    loaded, needed = ({name for name in state if name.startswith(prefix)} for state in (weights, target))
    if loaded == needed:
        return weights
    merged = {name: weights[name] for name in weights if name not in loaded} | {name: target[name] for name in needed}
    if loaded and {f"{head}weight", f"{head}bias"} <= set(weights):
        mean, std = weights[f"{prefix}mean"], weights[f"{prefix}std"]
        merged[f"{head}weight"] = weights[f"{head}weight"] * std
        merged[f"{head}bias"] = weights[f"{head}bias"] * std + mean
    if needed and f"{head}weight" in weights:  # values are already in the unit of rewards: the first update keeps them
        merged[f"{prefix}weight"] = torch.full_like(target[f"{prefix}weight"], 1e-12)
    return merged
