"""`Rollout`: `T` steps of `N` environments as tensors `[T, N, ...]`; `LearnerState`: what is carried to the next."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from agents.returns import bootstrap_values
from envs.tensor_env import Info, Obs, TensorEnv
from policies.action_masks import check_width
from policies.memories.contract import State
from policies.memories.steps import Unrolled, detach, select
from policies.observations import obs_entries


@dataclass
class Rollout:
    """A rollout. Written in place, step by step, and read by the learners.

    `starts[t]` is true if observation `t` is the first of its episode; the memory is reset *before* it reads such an
    observation. `terminated[t]` and `truncated[t]` describe the transition after observation `t`.
    """

    obs: Obs
    actions: Tensor
    """`[T, N, *action_shape]`, as sampled (continuous actions are not yet clipped to their bounds)."""
    rewards: Tensor
    """The environment's rewards; the learner's `reward_scale` is applied in the advantages."""
    values: Tensor
    log_probs: Tensor
    starts: Tensor
    terminated: Tensor
    truncated: Tensor
    final_values: Tensor
    """Value of the final observation with the final memory where `truncated`, 0 elsewhere."""
    last_values: Tensor
    """`[N]`, value of the observation after the last step, the first of the next rollout."""
    advantages: Tensor
    returns: Tensor
    state: State = field(default_factory=dict)
    """The memory before the first step (and before its reset, if `starts[0]`)."""
    resets: list[int] = field(default_factory=list)
    """The steps at which any `starts` may be true, known to the host without a synchronisation."""
    latents: Tensor | None = None
    """The memory's outputs `[T, N, F]` with their graph, if the learner keeps it."""
    grids: Tensor | None = None
    """The memory's maps `[T, N, C, H, W]` with their graph, if it has maps and the learner keeps the graph."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """The memory's own losses `[T, N]` with their graph, if the learner keeps it."""
    targets: Tensor | None = None
    """The right actions `[T, N, *action_shape]`, if the learner needs them."""
    weights: Tensor | None = None
    """Weights of the right actions, `[T, N]` or `[T, N, parts]`."""
    masks: Tensor | None = None
    """Action masks, bool `[T, N, choices]`, if the environment gives them (`policies.action_masks`)."""
    episode_stats: Tensor | None = None
    """Statistics of ended episodes as reported by the environment, `[3, T, N]`: return, length, success; NaN where not
    reported. None: the environment never reports any."""
    aborted: Tensor | None = None
    """Where an episode was aborted because a callback moved the environment, bool `[T, N]`; it is not counted."""

    @classmethod
    def allocate(cls, n_steps: int, env: TensorEnv, with_episode_stats: bool = False) -> Rollout:
        """Allocates `n_steps` of `env`. The tensors are reused for every rollout, since new allocations are slow.

        Without `with_episode_stats`, episode statistics are allocated when the environment first reports one, which
        must be at the same step on every rank.
        """

        def new_buffer(shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(n_steps, env.num_envs, *shape, dtype=dtype, device=env.device)

        obs, action = env.single_observation_space, env.single_action_space
        assert action.shape is not None
        floats = {
            name: new_buffer() for name in ("rewards", "values", "log_probs", "final_values", "advantages", "returns")
        }
        floats["last_values"] = new_buffer()[0]
        flags = {name: new_buffer(dtype=torch.bool) for name in ("starts", "terminated", "truncated")}
        # as sampled: actions of an integer Box are rounded only for the environment
        rounded = isinstance(action, spaces.Box) and not _dtype(action).is_floating_point
        actions = new_buffer(action.shape, torch.float32 if rounded else _dtype(action))
        entries: dict[str, Any] = {"actions": actions, **floats, **flags}
        if isinstance(obs, spaces.Dict):
            entries["obs"] = {key: new_buffer(entry.shape or (), _dtype(entry)) for key, entry in obs.spaces.items()}
        else:
            entries["obs"] = new_buffer(obs.shape or (), _dtype(obs))
        if with_episode_stats:
            entries["episode_stats"] = torch.full((3, n_steps, env.num_envs), torch.nan, device=env.device)
        return cls(**entries)

    def allocate_masks(self, mask: Tensor | None, space: spaces.Space[Any], before: int = 0) -> None:
        """Allocates masks for a rollout, of the shape of `mask` `[N, choices]`; None: no masks.

        The first `before` steps get masks that allow everything.

        Raises:
            ValueError: the mask does not fit the action space.
        """
        if mask is None:
            self.masks = None
            return
        check_width(mask, space)
        shape = len(self.rewards), *mask.shape
        if self.masks is None or self.masks.shape != shape:
            self.masks = torch.zeros(shape, dtype=torch.bool, device=mask.device)
        self.masks[:before] = True

    def write_obs(self, t: int | slice, obs: Obs) -> None:
        """Stores the observations of one step `[N, ...]`, or of several `[T, N, ...]`."""
        parts = obs_entries(obs)
        for name, buffer in obs_entries(self.obs).items():  # only the space's entries; `obs` may have more
            buffer[t] = parts[name]

    def begin(self, state: State) -> None:
        """Called before the first step, with the memory's current state."""
        self.state, self.resets, self.aborted = state, [], None
        self.final_values.zero_()
        if self.episode_stats is not None:
            self.episode_stats.fill_(torch.nan)

    def record_episodes(self, t: int, info: Info) -> None:
        """Stores the environment's statistics of episodes that ended with step `t`."""
        if "episodes" in info and self.episode_stats is not None:  # return, length and success
            self.episode_stats[:, t] = info["episodes"]
            return
        for kind, name in enumerate(("episode_return", "episode_length", "is_success")):
            if name in info:
                if self.episode_stats is None:
                    self.episode_stats = torch.full((3, *self.rewards.shape), torch.nan, device=self.rewards.device)
                self.episode_stats[kind, t] = info[name]

    @property
    def observations(self) -> Obs:
        """`obs`, by its name in SB3's `RolloutBuffer`."""
        return self.obs

    @property
    def episode_starts(self) -> Tensor:
        """`starts`, by their name in SB3's `RolloutBuffer`."""
        return self.starts

    def next_values(self, values: Tensor) -> Tensor:
        """The value after each step, from the values `[T, N]` of the observations; see `bootstrap_values`."""
        return bootstrap_values(values, self.last_values, self.terminated, self.truncated, self.final_values)

    def keep_graph(self, unrolled: Unrolled) -> None:
        """Stores the memory's outputs and losses with their graph."""
        self.latents, self.grids, self.losses = unrolled.outputs, unrolled.grids, unrolled.losses

    def drop_graph(self) -> None:
        """Drops what `keep_graph` stored."""
        self.latents, self.grids, self.losses = None, None, {}

    def ended(self) -> Tensor:
        """Where an episode ended, for either reason: bool `[T, N]`."""
        return self.terminated | self.truncated

    def environments(self, index: Tensor) -> Rollout:
        """The part of the rollout of the environments `index`: minibatches are sets of environments with all their
        steps."""
        entries: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor) and entry.name != "episode_stats":
                entries[entry.name] = value[index] if entry.name == "last_values" else value[:, index]
        if isinstance(self.obs, dict):
            entries["obs"] = {key: value[:, index] for key, value in self.obs.items()}
        losses = {name: value[:, index] for name, value in self.losses.items()}
        return replace(self, **entries, state=select(self.state, index), losses=losses)


@dataclass
class LearnerState:
    """Observation, memory state and reset signal of `N` environments, on the device."""

    obs: Obs
    """The current observation `[N, ...]`, on which the agent has not acted yet."""
    memory: State
    """The memory's state before it reads `obs`; not yet reset where `starts`."""
    starts: Tensor
    """Bool `[N]`: true where `obs` is the first observation of its episode."""
    may_start: bool
    """False if the host knows that no entry of `starts` is true."""

    @property
    def resets(self) -> Tensor | None:
        """`starts`; None if no entry can be true."""
        return self.starts if self.may_start else None

    def detach(self) -> None:
        """Drops the graph of the memory's state, and makes it contiguous as in a checkpoint.

        Kernels for other strides round differently, so that a resumed run would differ.
        """
        self.memory = {name: value.contiguous() for name, value in detach(self.memory).items()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, by their names in a checkpoint."""
        observations = {f"run/obs/{name}": value for name, value in obs_entries(self.obs).items()}
        memory = {f"memory/{name}": value for name, value in detach(self.memory).items()}
        return {**observations, **memory, "run/starts": self.starts}


def _dtype(space: Any) -> torch.dtype:
    """The torch type of a space's numpy type."""
    dtype = getattr(torch, str(space.dtype))
    assert isinstance(dtype, torch.dtype)
    return dtype
