"""Scores of an agent over many episodes in parallel environments, without a host synchronisation per step.

Every environment contributes a number of episodes fixed in advance. Taking the first N episodes to end would count
short ones too often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.environments import EnvLike, HostEnv, as_tensor_env
from agents.evaluation.breakdown import Breakdown
from agents.learner import MemoryOnPolicyAlgorithm
from agents.metrics.non_finite import NonFiniteError
from agents.metrics.task import TaskMetrics
from agents.scale.devices import widest
from envs.tensor_env import Info, Obs, TensorEnv
from policies.action_masks import check_width, random_choices, refuse_without_choice, without_choice
from policies.policy import MemoryActorCriticPolicy

Array = np.ndarray[Any, np.dtype[Any]]
Act = Callable[..., Tensor]
"""Maps observations `[N, ...]`, `starts` (bool `[N]`; None: no episode starts here) and, if the environment gives one,
the mask of valid choices to actions `[N, *action_shape]`."""

MAX_STEPS = 30_000
"""Default maximum length of an episode; Atari games have up to 27,000 steps."""
_READ_EVERY = 16  # steps between checks whether all episodes are complete, if there is no fixed horizon


@dataclass(frozen=True)
class Score:
    """Result of an evaluation."""

    mean: float
    """Mean return of an episode."""
    ci95: float
    """Half width of the 95 % confidence interval of `mean` by Student's t; NaN for a single episode."""
    std: float
    """Sample standard deviation of the returns; NaN for a single episode."""
    episodes: int
    """Number of episodes."""
    mean_length: float
    """Mean episode length in steps."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The task's own metrics by name, if it has any."""
    cut: int = 0
    """Number of episodes that were cut after `max_steps`; they count with their return so far."""

    @classmethod
    def of(cls, returns: Array, lengths: Array, metrics: dict[str, float] | None = None, cut: int = 0) -> Score:
        """The score of episodes with these returns and lengths, each `[episodes]`."""
        from scipy.special import stdtrit  # quantiles of Student's t; importing it changes warning filters

        count = len(returns)
        std = float(np.std(returns, ddof=1)) if count > 1 else math.nan
        ci95 = float(stdtrit(count - 1, 0.975)) * std / math.sqrt(count) if count > 1 else math.nan
        return cls(float(np.mean(returns)), ci95, std, count, float(np.mean(lengths)), metrics or {}, cut)

    def as_dict(self) -> dict[str, Any]:
        """As a dictionary for JSON; NaN becomes None."""
        numbers = {name: value for name, value in vars(self).items() if name not in ("metrics", "cut")}
        numbers |= {"cut": self.cut} if self.cut else {}
        plain = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        return {**plain, **({"metrics": self.metrics} if self.metrics else {})}

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if math.isnan(self.ci95) else f"{self.mean:.3f} ± {self.ci95:.3f}"


def evaluate(
    model: MemoryOnPolicyAlgorithm | MemoryActorCriticPolicy,
    env: EnvLike,
    n_episodes: int,
    deterministic: bool = False,
    seed: int | None = None,
    breakdown: Breakdown | None = None,
    max_steps: int = MAX_STEPS,
) -> Score:
    """Plays `n_episodes` with an agent and its memory, in all environments of `env` in parallel.

    The memory is reset at episode starts, as in training. `env` is reset first and left in the middle of an episode.

    Args:
        model: an agent or its policy.
        env: what learners take: a `TensorEnv` on the agent's device, a Gymnasium id, `Env` or `VectorEnv`, an SB3
            `VecEnv`.
        n_episodes: number of episodes, shared out equally; the first environments play the remainder.
        deterministic: act greedily instead of sampling.
        seed: makes the score reproducible and leaves torch's global generators unchanged; None: uses those.
        breakdown: collects the score of single answers by the task's groups.
        max_steps: longer episodes are cut at this length, and their environment plays no further episodes, so that
            evaluation always ends. `Score.cut` counts them.

    Raises:
        ValueError: `n_episodes` is below 1, or the environment's spaces are not the agent's.
        TypeError: `env` is not an environment.
        NonFiniteError: a reward is NaN or infinite.
        DivergedError: the action probabilities contain NaN.
    """
    policy = model.policy if isinstance(model, MemoryOnPolicyAlgorithm) else model
    tensor_env = env if isinstance(env, TensorEnv) else as_tensor_env(env, policy.device)
    check_spaces(policy, tensor_env)
    state = policy.initial_state(tensor_env.num_envs)

    def act(obs: Obs, starts: Tensor | None, *mask: Tensor) -> Tensor:
        nonlocal state
        step = policy.remember(obs, state, starts)
        state = step.state
        return policy.actions.to_env(policy.act(step.output, deterministic, step.grid, *mask))

    training = policy.training
    policy.set_training_mode(False)
    try:
        return play(act, tensor_env, n_episodes, seed, breakdown, max_steps)
    finally:
        policy.set_training_mode(training)


def check_spaces(policy: MemoryActorCriticPolicy, env: TensorEnv) -> None:
    """Checks that an agent can act in an environment.

    Raises:
        ValueError: the observation or action space differs.
    """
    for name in ("observation_space", "action_space"):
        of_env, of_agent = getattr(env, f"single_{name}"), getattr(policy, name)
        if of_env != of_agent:
            raise ValueError(f"the environment's {name} is {of_env}, but the agent was made for {of_agent}")


def random_score(
    env: EnvLike,
    n_episodes: int,
    seed: int | None = None,
    breakdown: Breakdown | None = None,
    max_steps: int = MAX_STEPS,
) -> Score:
    """The score of uniformly random (valid) actions; arguments as in `evaluate`.

    Raises:
        ValueError: `random_actions` does not support the action space.
        TypeError: `env` is not an environment.
    """
    tensor_env = env if isinstance(env, TensorEnv) else as_tensor_env(env)
    space = tensor_env.single_action_space

    def act(obs: Obs, starts: Tensor | None, *mask: Tensor) -> Tensor:
        return random_actions(space, tensor_env.num_envs, tensor_env.device, *mask)

    return play(act, tensor_env, n_episodes, seed, breakdown, max_steps)


def play(
    act: Act,
    env: TensorEnv,
    n_episodes: int,
    seed: int | None = None,
    breakdown: Breakdown | None = None,
    max_steps: int = MAX_STEPS,
) -> Score:
    """The score of any function that chooses actions; arguments as in `evaluate`.

    Raises:
        ValueError: `n_episodes` is below 1, or a mask of valid actions allowed none.
        NonFiniteError: a reward is NaN or infinite.
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes is {n_episodes}, expected at least 1")
    quota = np.full(env.num_envs, n_episodes // env.num_envs)
    quota[: n_episodes % env.num_envs] += 1
    with torch.no_grad(), _seeded(seed, env.device), _uncounted(env):
        metrics, player = TaskMetrics(env.metric_names, env.device), _Player(act, env)
        returns, lengths, counted, cut = _play(player, env, quota, seed, metrics, breakdown, max_steps)
    refuse_without_choice(float(player.without_choice))
    if not np.isfinite(returns[counted]).all():
        raise NonFiniteError("a reward is not finite, so that the mean return is not either")
    of_task = metrics.values(metrics.sums().cpu().numpy())
    return Score.of(returns[counted], lengths[counted], {**of_task, **player.success_rate()}, cut)


@contextmanager
def _uncounted(env: TensorEnv) -> Iterator[None]:
    """Restores the episodes that a learner has yet to count, if the environments are its own."""
    if not isinstance(env, HostEnv):
        yield
        return
    known, env.counted = env.counted, []
    try:
        yield
    finally:
        env.counted = known


class _Player:
    """Chooses actions by `act`, with the environment's action masks."""

    def __init__(self, act: Act, env: TensorEnv) -> None:
        self.act, self.space = act, env.single_action_space
        self.without_choice = torch.zeros((), device=env.device)
        """Number of observations without a valid action."""
        self._successes = torch.zeros(2, device=env.device)

    def __call__(self, obs: Obs, starts: Tensor | None, info: Info) -> Tensor:
        mask = info.get("action_mask")
        if mask is not None:
            check_width(mask, self.space)
            self.without_choice += without_choice(mask, self.space).sum()
        return self.act(obs, starts, *(() if mask is None else (mask,)))

    def record_success(self, info: Info, over: Tensor) -> None:
        """Records `info["is_success"]` for environments whose episode is over, bool `[N]`; NaN if it is missing."""
        if "is_success" in info:
            success = info["is_success"].float()
            reported = over & ~success.isnan()
            self._successes += torch.stack([success.where(reported, 0.0).sum(), reported.sum()])

    def success_rate(self) -> dict[str, float]:
        """The success rate under its log name; empty if no environment reported successes."""
        successes, episodes = self._successes.tolist()
        return {"success_rate": successes / episodes} if episodes else {}


def _play(
    act: _Player,
    env: TensorEnv,
    quota: Array,
    seed: int | None,
    metrics: TaskMetrics,
    breakdown: Breakdown | None,
    max_steps: int,
) -> tuple[Array, Array, Array, int]:
    """Returns and lengths `[rounds, num_envs]`, a mask of those that count, and how many of these were cut.

    Results stay on the device. Without a fixed horizon, the host checks every few steps whether all are complete. If
    the environment counts episodes itself (`TensorEnv.counts_episodes`), its counts are used.
    """
    num_envs, device = env.num_envs, env.device
    obs, info = env.reset(seed=seed)
    starts: Tensor | None = torch.ones(num_envs, dtype=torch.bool, device=device)
    wanted = torch.as_tensor(quota, device=device)
    rounds = int(quota.max())
    # Row `rounds` collects everything after an environment's last counted episode.
    returns = torch.zeros(rounds + 1, num_envs, device=device, dtype=widest(device))
    lengths = torch.zeros(rounds + 1, num_envs, dtype=torch.int64, device=device)
    played = torch.zeros(num_envs, dtype=torch.int64, device=device)

    # Return and length of every environment's running episode, for episodes that do not end.
    partial, since = torch.zeros_like(returns[0]), torch.zeros_like(played)
    cut = torch.zeros_like(played, dtype=torch.bool)  # environments that play no further episodes

    def unfinished() -> bool:
        if env.horizon is not None:  # with a lower limit every first episode is cut
            return step < (max_steps if max_steps < env.horizon else rounds * env.horizon)
        return bool(step % _READ_EVERY) or bool(((played < wanted) & ~cut).any())

    step = 0
    while unfinished():
        if breakdown is not None and step % breakdown.horizon == 0:
            breakdown.begin(env)
        obs, reward, terminated, truncated, info = env.step(act(obs, starts, info))
        live = (played < wanted) & ~cut
        metrics.add(info, live)
        if breakdown is not None:
            breakdown.add(info, step % breakdown.horizon, live)
        row = torch.where(live, played, rounds)[None]
        ended = over = terminated | truncated
        partial, since = torch.where(cut, partial, partial + reward), since + ~cut
        steps = torch.ones_like(played)
        if env.counts_episodes:
            reward, steps, over = _as_counted(info, reward)
        returns.scatter_add_(0, row, reward[None].to(returns.dtype))
        lengths.scatter_add_(0, row, steps[None])
        over = over & live
        partial, since = partial.masked_fill(over, 0.0), since.masked_fill(over, 0)
        act.record_success(info, over)
        played += over
        cut |= live & ~over & (since >= max_steps)
        starts = ended if "final_obs" in info else None
        step += 1
    cut_row = cut & (torch.arange(rounds + 1, device=device)[:, None] == played)
    counted = cut_row[:-1] | (torch.arange(rounds, device=device)[:, None] < torch.minimum(played, wanted))
    returns, lengths = torch.where(cut_row, partial, returns), torch.where(cut_row, since, lengths)
    return returns[:-1].cpu().double().numpy(), lengths[:-1].cpu().numpy(), counted.cpu().numpy(), int(cut.sum())


def _as_counted(info: Info, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return and length of episodes that the environment reports as ended (0 elsewhere), and a mask of these: `[N]`."""
    counted: Tensor = info.get("episode_return", torch.full_like(reference, torch.nan))
    over = ~counted.isnan()
    length: Tensor = info.get("episode_length", counted)
    return counted.where(over, 0.0), length.where(over, 0.0).long(), over


def random_actions(space: spaces.Space[Any], num_envs: int, device: torch.device, mask: Tensor | None = None) -> Tensor:
    """A uniformly random action for each environment, `[num_envs, *action_shape]`, drawn on the device.

    Entries of a `Box` without bounds have no uniform distribution; as in Gymnasium they are normal, or exponential from
    the only bound. With a `mask` `[num_envs, choices]`, choices are among the valid ones.

    Raises:
        ValueError: the space is not a `Discrete`, `MultiDiscrete`, `MultiBinary` or `Box`.
    """
    if mask is not None:
        drawn = random_choices(mask, space)
        if isinstance(space, spaces.MultiBinary):
            return drawn.to(torch.int8)
        return drawn + torch.as_tensor(getattr(space, "start", 0), device=device)
    if isinstance(space, spaces.Discrete):
        return torch.randint(int(space.n), (num_envs,), device=device) + int(space.start)
    if isinstance(space, spaces.MultiBinary):
        return torch.randint(2, (num_envs, *space.shape), device=device, dtype=torch.int8)
    if isinstance(space, spaces.MultiDiscrete):
        count, start = (torch.as_tensor(part, device=device) for part in (space.nvec, space.start))
        drawn = torch.rand(num_envs, *count.shape, device=device, dtype=widest(torch.device(device))) * count
        return drawn.long() + start
    if isinstance(space, spaces.Box):
        dtype = widest(torch.device(device))
        low, high = (torch.as_tensor(np.asarray(b, np.float64)).to(device, dtype) for b in (space.low, space.high))
        whole = np.issubdtype(space.dtype, np.integer)
        shape = (num_envs, *low.shape)
        uniform = low + torch.rand(shape, device=device, dtype=dtype) * (high - low + whole)
        tail = -torch.log1p(-torch.rand(shape, device=device, dtype=dtype))
        free = torch.randn(shape, device=device, dtype=dtype)
        bounded = torch.where(low.isfinite(), low + tail, torch.where(high.isfinite(), high - tail, free))
        drawn = torch.where(low.isfinite() & high.isfinite(), uniform, bounded)
        return (drawn.floor() if whole else drawn).to(torch.from_numpy(np.empty(0, space.dtype)).dtype)
    raise ValueError(f"there are no random actions for {space}: expected Discrete, MultiDiscrete, MultiBinary or Box")


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Context manager with seeded generators; the old states are restored afterwards. With None it does nothing."""
    if seed is None:
        yield
        return
    # The environment's generator is seeded with `seed`. Actions drawn with this seed too would be the same numbers, and
    # random guesses would be right too often.
    action_seed = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(action_seed)
        yield
