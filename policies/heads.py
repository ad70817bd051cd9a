"""Action heads: faster versions of SB3's distributions, and maps, read from a memory's map by a 1×1 convolution.

`ActionConverter` converts actions between distributions and environments: bounds, starts, types.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, cat, nn
from torch.distributions import Bernoulli, Categorical, Normal

from policies.memories.time.scopes import host_may_read
from policies.observations import AGENT_SPACES, MAX_CHOICES, short, too_many_choices, warn_once


class Decision(NamedTuple):
    """Decisions for a memory's output, with the same leading dimensions."""

    action: Tensor
    value: Tensor
    log_prob: Tensor


class ActionEvaluation(NamedTuple):
    """Evaluation of given actions, with the leading dimensions of the memory's output."""

    value: Tensor
    log_prob: Tensor
    entropy: Tensor


# torch.distributions checks its arguments by reading them on the host: a synchronisation at every step of a rollout.
# The learners check for NaN and infinity once per update instead. So these are SB3's distributions without checks.


class DivergedError(RuntimeError):
    """A policy's probabilities contain NaN."""


def refuse_nan(values: Tensor) -> None:
    """Raises an error if action probabilities or logits contain NaN.

    Only on a CPU, where this needs no synchronisation: on a GPU the learner finds NaN in the iteration's metrics.

    Raises:
        DivergedError: there is a NaN.
    """
    if values.device.type == "cpu" and host_may_read() and values.sum().isnan():
        raise DivergedError("action probabilities contain NaN: the observation does, or the policy has diverged")


class CategoricalDistribution(sb3.CategoricalDistribution):
    """SB3's distribution without checks."""

    def proba_distribution(self, action_logits: Tensor) -> CategoricalDistribution:
        self.distribution = Categorical(logits=action_logits, validate_args=False)
        return self


class MultiCategoricalDistribution(sb3.MultiCategoricalDistribution):
    """SB3's distribution without checks; all parts of an action share the same few operations.

    Args:
        action_dims: choices of each part.
    """

    def __init__(self, action_dims: list[int]) -> None:
        super().__init__(action_dims)
        self._padding: dict[torch.device, Tensor] = {}
        """If parts differ in length: the column of each entry in the table of choices, per device."""

    def proba_distribution(self, action_logits: Tensor) -> MultiCategoricalDistribution:
        self.logits = action_logits
        self._log_probs: Tensor | None = None
        return self

    @property  # type: ignore[override]
    def distribution(self) -> list[Categorical]:
        """torch's distributions, one per part."""
        parts = torch.split(self.logits, list(self.action_dims), dim=1)
        return [Categorical(logits=part, validate_args=False) for part in parts]

    @distribution.setter
    def distribution(self, value: list[Categorical]) -> None:
        """SB3's constructor sets it to None."""

    @property
    def log_probs(self) -> Tensor:
        """Log-probabilities of all choices, `[B, parts, most choices]`; -inf for choices that a part does not have."""
        if self._log_probs is None:
            self._log_probs = self._table(self.logits).log_softmax(-1)
        return self._log_probs

    def _table(self, numbers: Tensor) -> Tensor:
        """Reshapes one number per choice, `[B, sum(action_dims)]`, to `[B, parts, most choices]`, padded with -inf."""
        most, parts = max(self.action_dims), len(self.action_dims)
        if min(self.action_dims) == most:
            return numbers.reshape(-1, parts, most)
        if numbers.device not in self._padding:
            places = iter(range(sum(self.action_dims)))
            beyond = sum(self.action_dims)
            rows = [[next(places) if choice < n else beyond for choice in range(most)] for n in self.action_dims]
            self._padding[numbers.device] = torch.tensor(rows, device=numbers.device).flatten()
        padded = torch.nn.functional.pad(numbers, (0, 1), value=-torch.inf)
        return padded.index_select(1, self._padding[numbers.device]).view(-1, parts, most)

    def log_prob_of_each(self, actions: Tensor) -> Tensor:
        """Log-probability of each part of actions `[B, parts]`."""
        return self.log_probs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.log_prob_of_each(actions).sum(1)

    def entropy(self) -> Tensor:
        return _entropies(self.log_probs).sum(1)

    def sample(self) -> Tensor:
        """Samples a choice for each part, `[B, parts]`: the argmax of log p − log e, with e exponential.

        `torch.multinomial` takes a dozen launches for each part on a GPU, and a NaN there kills the process's context.

        Raises:
            DivergedError: on a CPU, as in `refuse_nan`.
        """
        logits = self.logits.detach()
        refuse_nan(logits)
        return self._table(logits - torch.empty_like(logits).exponential_().log()).argmax(-1)

    def mode(self) -> Tensor:
        return self._table(self.logits).argmax(-1)


class BernoulliDistribution(sb3.BernoulliDistribution):
    """SB3's distribution without checks."""

    def proba_distribution(self, action_logits: Tensor) -> BernoulliDistribution:
        self.distribution = Bernoulli(logits=action_logits, validate_args=False)
        return self

    def sample(self) -> Tensor:
        """Bits `[B, n]`, without the check of `torch.bernoulli` that kills a GPU's context over a NaN.

        Raises:
            DivergedError: on a CPU, as in `refuse_nan`.
        """
        probabilities = self.distribution.logits.detach().sigmoid()
        refuse_nan(probabilities)
        return (torch.rand_like(probabilities) < probabilities).to(probabilities.dtype)


class GaussianDistribution(sb3.DiagGaussianDistribution):
    """SB3's distribution without checks."""

    def proba_distribution(self, mean_actions: Tensor, log_std: Tensor) -> GaussianDistribution:
        std = torch.ones_like(mean_actions) * log_std.exp()
        self.distribution = Normal(mean_actions, std, validate_args=False)
        return self


class ChoiceDistribution(CategoricalDistribution):
    """SB3's categorical distribution in fewer operations, with the same samples from the same random numbers.

    These small operations are a large part of the cost of acting. Sampling is what `torch.multinomial` does for one
    sample: the argmax of p / e, with e exponential.
    """

    def proba_distribution(self, action_logits: Tensor) -> ChoiceDistribution:
        self.logits = action_logits
        self._log_probs: Tensor | None = None
        return self

    @property
    def distribution(self) -> Categorical:
        """torch's distribution."""
        return Categorical(logits=self.logits, validate_args=False)

    @distribution.setter
    def distribution(self, value: Categorical) -> None:
        """SB3's constructor sets it to None."""

    @property
    def log_probs(self) -> Tensor:
        """Log-probabilities of all choices, `[B, choices]`."""
        if self._log_probs is None:
            self._log_probs = self.logits.log_softmax(-1)
        return self._log_probs

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.log_probs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return _entropies(self.log_probs)

    def sample(self) -> Tensor:
        """Samples a choice for each row.

        Raises:
            DivergedError: on a CPU, as in `refuse_nan`.
        """
        probabilities = self.logits.detach().softmax(-1)
        refuse_nan(probabilities)
        return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)

    def mode(self) -> Tensor:
        return self.logits.argmax(-1)


def _entropies(log_probs: Tensor) -> Tensor:
    """Entropy of distributions over the last dimension."""
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)  # 0 log 0 is 0
    return -(finite * finite.exp()).sum(-1)


class MapHead(nn.Module):
    """Logits from a vector, and of every cell of a map.

    Args:
        width: width of the vector.
        numbers: number of logits computed from the vector.
        channels: channels of the map.
        maps: number of maps of logits computed from the map.
    """

    def __init__(self, width: int, numbers: int, channels: int, maps: int) -> None:
        super().__init__()
        self.vector = nn.Linear(width, numbers) if numbers else None
        self.cells = nn.Conv2d(channels, maps, kernel_size=1)

    def forward(self, parts: tuple[Tensor, Tensor]) -> Tensor:
        """From a vector `[B, F]` and a map `[B, C, H, W]` to logits `[B, numbers + maps · H · W]`."""
        latent, grid = parts
        cells: Tensor = self.cells(grid).flatten(1)
        return cells if self.vector is None else cat([self.vector(latent), cells], 1)


class MapDistribution(BernoulliDistribution):
    """A Bernoulli distribution for every cell of `[*parts, H, W]`.

    Args:
        channels: channels of the map that is read.
        shape: shape of the action.
    """

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__(math.prod(shape))
        self.channels, self.maps = channels, math.prod(shape[:-2])

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        return MapHead(latent_dim, 0, self.channels, self.maps)


class PlaceDistribution(MultiCategoricalDistribution):
    """Categorical choices, the last of which is a cell of a map.

    Args:
        channels: channels of the map that is read.
        choices: number of choices of each part; the last is the number of cells.
    """

    def __init__(self, channels: int, choices: list[int]) -> None:
        super().__init__(choices)
        self.channels = channels

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        return MapHead(latent_dim, sum(self.action_dims[:-1]), self.channels, 1)


def map_distribution(
    space: spaces.Space,  # type: ignore[type-arg]
    grid: tuple[int, int, int] | None,
) -> Distribution | None:
    """The distribution over an action space that is a map of the size of `grid`, or ends with a cell of such a map.

    Args:
        space: the action space.
        grid: shape of the memory's map, `(C, H, W)`; None: the memory has no map.

    Returns:
        None for other action spaces.
    """
    if grid is None:
        return None
    channels, height, width = grid
    if isinstance(space, spaces.MultiBinary) and tuple(space.shape[-2:]) == (height, width):
        return MapDistribution(channels, tuple(space.shape))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and space.nvec[-1] == height * width:
        return PlaceDistribution(channels, space.nvec.tolist())
    return None


def unchecked(distribution: Distribution) -> Distribution:
    """Replaces SB3's distribution of an action space by one of the above."""
    if isinstance(distribution, sb3.CategoricalDistribution):
        return ChoiceDistribution(distribution.action_dim)
    if isinstance(distribution, sb3.MultiCategoricalDistribution):
        return MultiCategoricalDistribution(list(distribution.action_dims))
    if isinstance(distribution, sb3.BernoulliDistribution):
        return BernoulliDistribution(distribution.action_dims)
    assert isinstance(distribution, sb3.DiagGaussianDistribution)
    return GaussianDistribution(distribution.action_dim)


def flattened(space: spaces.Space) -> spaces.Space:  # type: ignore[type-arg]
    """`space` in the form of SB3's distributions: one-dimensional."""
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary(math.prod(space.shape))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec.ravel())
    return space


class ActionConverter:
    """Converts between the action values of the policy's distributions and of the environment.

    Distributions count choices from 0, an environment from its space's `start`. Continuous actions have bounds that the
    distribution does not know.

    Args:
        space: of one action.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space
        self.bits, self.continuous = isinstance(space, spaces.MultiBinary), isinstance(space, spaces.Box)
        self.whole = np.issubdtype(space.dtype, np.integer)
        first = np.asarray(getattr(space, "start", 0)).astype(np.int64)  # torch cannot add unsigned numbers
        self._limits = (space.low, space.high) if isinstance(space, spaces.Box) else (first,) if first.any() else ()
        self._tensors: tuple[Tensor, ...] = ()

    def to_env(self, action: Tensor) -> Tensor:
        """The environment's actions: continuous actions clipped to their bounds, choices and bits in its numbering."""
        if self.bits:
            return action.to(torch.int8)
        if not self.continuous:
            return action + self._limits_on(action.device)[0] if self._limits else action
        action = torch.clamp(action, *self._limits_on(action.device))
        return action.round() if self.whole else action

    def from_env(self, action: Tensor) -> Tensor:
        """The distribution's actions for the environment's; continuous actions are unchanged."""
        return action - self._limits_on(action.device)[0] if self._limits and not self.continuous else action

    def arrays(self, action: Tensor) -> np.ndarray[Any, Any]:
        """The environment's actions as an array of its space's type, `[B, *action_shape]`."""
        array = self.to_env(action).cpu().numpy().reshape((-1, *(self.space.shape or ())))
        return array.astype(self.space.dtype, copy=False)

    def _limits_on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The bounds of a `Box`, or the first choice, on a device."""
        if not self._tensors or self._tensors[0].device != device:
            self._tensors = tuple(torch.as_tensor(limit, device=device) for limit in self._limits)
        return self._tensors


def check_action_space(space: spaces.Space[Any]) -> None:
    """Checks that there is a distribution for the action space; bounds that it hardly reaches give a warning.

    Raises:
        ValueError: there is no distribution; the message says what to do.
    """
    if not isinstance(space, AGENT_SPACES):
        raise ValueError(
            f"the action space is {short(space)}; expected Box, Discrete, MultiDiscrete or MultiBinary: "
            "rewrite it with gymnasium.wrappers.TransformAction"
        )
    if isinstance(space, spaces.Box) and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"the action space {short(space)} has no bounds; expected finite ones: "
            "set them with gymnasium.wrappers.TransformAction, without ClipAction, which removes them; the agent's "
            "actions are clipped to the bounds"
        )
    if too_many_choices(space):
        raise ValueError(
            f"the action space {short(space)} has more than {MAX_CHOICES:,} choices, each of which needs a logit: "
            "rewrite it with gymnasium.wrappers.TransformAction, for example as digits in a MultiDiscrete"
        )
    if 0 in (space.shape or ()):
        raise ValueError(f"the action space {short(space)} is empty; expected at least one choice")
    if isinstance(space, spaces.Box) and _far_from_normal(space):
        warn_once(
            f"the actions of {short(space)} are far from a standard normal distribution, with which a policy begins: "
            "scale them with gymnasium.wrappers.RescaleAction(env, -1, 1)"
        )


def _far_from_normal(space: spaces.Box) -> bool:
    """Whether most draws of a standard normal distribution are clipped, or fall into a small part of some range."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return bool(((high - low > 20) | (high - low < 0.1) | (low > 1) | (high < -1)).any())
