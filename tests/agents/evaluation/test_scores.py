"""Scores against numbers worked out by hand."""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from agent_stubs import script
from gymnasium import spaces
from torch import Tensor

from agents import PPO, make_env
from agents.evaluation.scores import Score, evaluate, play, random_actions, random_score
from agents.metrics.non_finite import NonFiniteError
from envs.tensor_env import Obs, TensorEnv
from policies.heads import DivergedError
from policies.policy import MemoryActorCriticPolicy


def idle(obs: Obs, starts: Tensor | None) -> Tensor:
    """Action 0 in every copy."""
    assert isinstance(obs, Tensor)
    return torch.zeros(len(obs), dtype=torch.int64)


class Fixed(TensorEnv):
    """Three steps an episode; the reward is the action, so that actions can be read off the score."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, spaces.Box(0.0, 1.0, (1,)), spaces.Discrete(10), horizon=3)

    def _begin(self, where: Tensor | None) -> None:
        self.step_now = torch.zeros(self.num_envs)

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        self.step_now = self.step_now + 1
        return action.float(), None, None

    def _observe(self) -> Tensor:
        return self.step_now[:, None] / 3


class CountingPolicy:
    """Acts with the number of steps its memory has seen, and notes every reset signal."""

    def __init__(self, env: TensorEnv) -> None:
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self.training = True
        self.actions = self
        self.starts: list[Tensor | None] = []

    def set_training_mode(self, mode: bool) -> None:
        self.training = mode

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        return {"count": torch.full((batch_size,), 7.0)}  # wrong unless the first step resets it too

    def remember(self, obs: Tensor, state: dict[str, Tensor], starts: Tensor | None = None) -> Any:
        assert not self.training
        self.starts.append(starts)
        count = state["count"] if starts is None else torch.where(starts, 0.0, state["count"])
        count = count + 1
        return type("Step", (), {"output": count, "state": {"count": count}, "grid": None})

    def act(self, latent: Tensor, deterministic: bool = False, grid: Tensor | None = None) -> Tensor:
        return latent

    def to_env(self, action: Tensor) -> Tensor:
        return action


# -- counting ----------------------------------------------------------------------------------------------------------


def test_short_episodes_do_not_count_more_often() -> None:
    # Copy 0 earns 1 in episodes of one step, copy 1 earns 10 in episodes of four. The first four episodes to end are
    # all of copy 0; two of each are the fair sample.
    env = script([[1, 2], [1, 2], [1, 2], [1, 4]], terminated=[(0, 0), (1, 0), (2, 0), (3, 0), (3, 1)])
    score = play(idle, env, 4)
    assert (score.mean, score.episodes, score.mean_length) == (5.5, 4, 2.5)
    assert score.std == pytest.approx(stdev([1, 1, 10, 10]))


def test_an_uneven_share_goes_to_the_first_copies() -> None:
    env = script([[1, 10, 100]], terminated=[(0, 0), (0, 1), (0, 2)])
    assert play(idle, env, 4).mean == pytest.approx(fmean([1, 1, 10, 100]))
    assert play(idle, env, 1).mean == 1
    assert play(idle, env, 2).mean == 5.5


def test_truncated_episodes_count() -> None:
    env = script([[1], [1], [3]], truncated=[(1, 0)], terminated=[(2, 0)])
    score = play(idle, env, 2)
    assert (score.mean, score.mean_length) == (2.5, 1.5)


def test_episodes_of_many_lengths_against_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    steps, copies, quota = 60, 5, 3
    rewards = generator.normal(size=(steps, copies)).round(2)
    ends = generator.random((steps, copies)) < 0.2
    ends[-1] = True
    returns, lengths = [], []
    for copy in range(copies):
        total, length, found = 0.0, 0, 0
        for t in range(steps):
            total, length = total + rewards[t, copy], length + 1
            if ends[t, copy] and found < quota:
                returns.append(total)
                lengths.append(length)
                total, length, found = 0.0, 0, found + 1
        assert found == quota
    env = script(rewards.tolist(), terminated=[tuple(place) for place in np.argwhere(ends)])
    score = play(idle, env, copies * quota)
    assert score.mean == pytest.approx(fmean(returns), abs=1e-5)
    assert score.std == pytest.approx(stdev(returns), abs=1e-5)
    assert score.mean_length == pytest.approx(fmean(lengths))


def test_long_episodes_are_cut_where_they_reach_the_limit() -> None:
    """Also while others still play, and although they end later."""
    rewards = [[1, 10]] * 8
    env = script(rewards, terminated=[(4, 1), (5, 0), (7, 0), (7, 1)])  # copy 0 is over the limit of 4 at step 3
    score = play(idle, env, 4, max_steps=4)
    assert (score.cut, score.episodes, score.mean_length) == (2, 2, 4)
    assert score.mean == fmean([4, 40])
    env = script(rewards, terminated=[(1, 0), (2, 1), (5, 1), (7, 1)])
    score = play(idle, env, 4, max_steps=4)  # copy 0 plays one episode and is then cut, copy 1 plays both
    assert (score.cut, score.episodes) == (1, 4)
    assert score.mean == fmean([2, 4, 30, 30])
    env = Fixed(2)
    score = play(idle, env, 4, max_steps=2)
    assert (score.cut, score.mean_length) == (2, 2)
    assert env.step_now.tolist() == [2, 2]  # nothing is played after the last cut


def test_returns_are_summed_in_double_precision() -> None:
    rewards = [[2.0**24 + 2], [1], [1], [1]]  # in float32 each 1 is rounded away
    assert play(idle, script(rewards, terminated=[(3, 0)]), 1).mean == 2**24 + 5
    assert play(idle, script(rewards, terminated=[(3, 0)]), 1, max_steps=3).mean == 2**24 + 4


class Blind(Fixed):
    def _observe(self) -> Tensor:
        return super()._observe() * torch.nan


def test_an_observation_that_is_not_finite_is_named() -> None:
    model = PPO("MemoryPolicy", Fixed(2), n_steps=3, device="cpu", policy_kwargs={"memory": "gru"})
    with pytest.raises(DivergedError, match="contain NaN: the observation does, or the policy has diverged"):
        evaluate(model, Blind(2), 2)


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_an_error(reward: float) -> None:
    rewards = [[0.0], [0.0], [reward], [0.0]]
    ends = [(1, 0), (3, 0)]
    assert play(idle, script(rewards, terminated=ends), 1).mean == 0
    with pytest.raises(NonFiniteError, match="a reward is not finite"):
        play(idle, script(rewards, terminated=ends), 2)


def test_the_interval_is_students() -> None:
    score = Score.of(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4))
    assert score.ci95 == pytest.approx(3.1824 * stdev([1, 2, 3, 4]) / 2, rel=2e-3)
    assert str(score).startswith("2.500 ± 2.05")
    tables = {1: 12.7062, 2: 4.3027, 3: 3.1824, 5: 2.5706, 10: 2.2281, 30: 2.0423, 255: 1.9693}
    for freedom, value in tables.items():
        score = Score.of(np.arange(freedom + 1.0), np.ones(freedom + 1))
        assert score.ci95 == pytest.approx(value * score.std / math.sqrt(freedom + 1), rel=2e-5)


def test_one_episode_has_no_interval() -> None:
    score = Score.of(np.array([3.0]), np.array([7]))
    assert str(score) == "3.000"
    assert score.as_dict() == {"mean": 3.0, "ci95": None, "std": None, "episodes": 1, "mean_length": 7.0}


def test_no_episodes_are_an_error() -> None:
    with pytest.raises(ValueError, match="n_episodes is 0"):
        play(idle, Fixed(1), 0)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_memory_lasts_an_episode_and_not_a_step_longer() -> None:
    env = Fixed(2)
    policy = CountingPolicy(env)
    score = evaluate(policy, env, 4)  # type: ignore[arg-type]
    assert (score.mean, score.std, score.mean_length) == (1 + 2 + 3, 0, 3)
    # two rounds of three steps; the reset signal comes only where an episode starts
    assert [starts is not None for starts in policy.starts] == [True, False, False] * 2
    assert policy.training


def test_memory_is_reset_where_each_copy_starts() -> None:
    env = script([[0, 0]] * 4, terminated=[(0, 0), (2, 0), (3, 1)])
    policy = CountingPolicy(env)
    seen: list[list[float]] = []
    policy.to_env = lambda action: seen.append(action.tolist()) or action  # type: ignore[method-assign, func-returns-value]
    evaluate(policy, env, 4)  # type: ignore[arg-type]
    assert seen[:5] == [[1, 1], [1, 2], [2, 3], [1, 4], [2, 1]]


def test_other_spaces_are_an_error() -> None:
    policy = CountingPolicy(Fixed(1))
    with pytest.raises(ValueError, match="observation_space"):
        evaluate(policy, script([[0]], terminated=[(0, 0)]), 1)  # type: ignore[arg-type]


def test_a_seed_makes_the_score_and_leaves_the_generators(model: PPO) -> None:
    env = make_env("Engram/InvisibleGoalMaze-v0", 8, episode_length=20)
    before = torch.get_rng_state()
    first, again, other = (evaluate(model, env, 16, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())
    assert isinstance(model.policy, MemoryActorCriticPolicy)
    assert evaluate(model.policy, env, 16, seed=1) == first


def test_scores_agree_with_stable_baselines(model: PPO) -> None:
    from stable_baselines3.common.evaluation import evaluate_policy

    from agents.environments import TensorVecEnv

    env = make_env("Engram/InvisibleGoalMaze-v0", 4, episode_length=30)
    env.reset(seed=3)  # both then start from one state of every generator
    state = env.state_dict()
    torch.manual_seed(0)
    theirs, _ = evaluate_policy(model, TensorVecEnv(env), 4, deterministic=False)  # type: ignore[arg-type]
    env.load_state_dict(state)
    torch.manual_seed(0)
    assert evaluate(model, env, 4).mean == pytest.approx(theirs)


# -- random actions ----------------------------------------------------------------------------------------------------


def test_random_score_of_repeat_first_is_one_in_k() -> None:
    env = make_env("Engram/RepeatFirst-v0", 256)
    score = random_score(env, 1024, seed=0)  # the seed is the environment's too: the two must not draw alike
    assert abs(score.mean - 0.25) < 3 * score.ci95 / 1.96
    assert score.mean_length == 16


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=2),
        spaces.MultiBinary([2, 3]),
        spaces.MultiDiscrete([2, 5]),
        spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 8.0], np.float32)),
        spaces.Box(0, 2, (2,), np.int32),
        spaces.Box(np.array([-np.inf, 1.0, -np.inf]), np.array([np.inf, np.inf, -2.0])),
    ],
    ids=str,
)
def test_random_actions_fill_their_space(space: spaces.Space[Any]) -> None:
    drawn = random_actions(space, 2000, torch.device("cpu")).numpy()
    assert drawn.shape == (2000, *(space.shape or ()))
    assert all(space.contains(action.astype(space.dtype)) for action in drawn[:50])
    if isinstance(space, spaces.Box) and not space.is_bounded():
        return
    low, high = (space.low, space.high) if isinstance(space, spaces.Box) else (drawn.min(0), drawn.max(0))
    assert np.allclose(drawn.mean(0), (np.asarray(low, float) + high) / 2, atol=0.3)
    whole = np.issubdtype(space.dtype, np.integer)
    assert not whole or np.array_equal(drawn.max(0), np.asarray(high))


def test_random_actions_need_a_known_space() -> None:
    with pytest.raises(ValueError, match="no random actions"):
        random_actions(spaces.Text(3), 2, torch.device("cpu"))
