"""The reset signal, shown by a memory that counts: 1, 2, 3 within an episode and 1 again at the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agent_stubs import collect, script, set_critic
from torch import Tensor

from agents import A2C, PPO, MemoryOnPolicyAlgorithm
from agents.rollout import Rollout
from envs.repeat_first import RepeatFirst
from envs.tmaze import TMaze


def counts(rollout: Rollout, copy: int = 0) -> list[int]:
    """What the critic, which reads the counter, said."""
    return [int(value) for value in rollout.values[:, copy].tolist()]


def counting(learner: type[MemoryOnPolicyAlgorithm], env: Any, n_steps: int, counter: str) -> MemoryOnPolicyAlgorithm:
    kwargs = {"memory": counter}
    model = learner("MemoryPolicy", env, n_steps=n_steps, policy_kwargs=kwargs, seed=0, normalize_values=False)
    set_critic(model, [1.0] + [0.0] * (model.policy.memory.output_size - 1), 0.0)
    return model


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_the_count_starts_anew_with_each_episode(learner: type[MemoryOnPolicyAlgorithm], counter: str) -> None:
    """Copy 0 has episodes of 2 and 3 steps, copy 1 of 5, over and over; a rollout has 4 steps."""
    env = script([[0.0, 0.0]] * 5, terminated=[(1, 0), (4, 1)], truncated=[(4, 0)])
    model = counting(learner, env, 4, counter)
    seen = [(counts(rollout, 0), counts(rollout, 1)) for rollout in (collect(model) for _ in range(3))]
    assert [first for first, _ in seen] == [[1, 2, 1, 2], [3, 1, 2, 1], [2, 3, 1, 2]]
    assert [second for _, second in seen] == [[1, 2, 3, 4], [5, 1, 2, 3], [4, 5, 1, 2]]


def test_starts_mark_the_first_observation_of_each_episode(counter: str) -> None:
    env = script([[0.0]] * 5, terminated=[(1, 0)], truncated=[(4, 0)])
    model = counting(PPO, env, 4, counter)
    marks = [collect(model).starts.flatten().tolist() for _ in range(3)]
    assert marks == [[True, False, True, False], [False, True, False, True], [False, False, True, False]]


@pytest.mark.parametrize("n_steps", [2, 3, 7, 12])
def test_a_common_horizon_resets_at_steps_known_to_the_host(n_steps: int, counter: str) -> None:
    """Episodes of 3 steps, in rollouts that are shorter, as long, and longer."""
    model = counting(PPO, RepeatFirst(2, length=3), n_steps, counter)
    seen: list[int] = []
    for _ in range(4):
        rollout = collect(model)
        seen += counts(rollout)
        assert rollout.resets == rollout.starts[:, 0].nonzero().flatten().tolist()
    assert seen == [1 + t % 3 for t in range(4 * n_steps)]


@pytest.mark.parametrize(
    "env", [RepeatFirst(3, length=3), TMaze(3, length=1, max_steps=4)], ids=["horizon", "variable"]
)
def test_resets_lists_every_step_at_which_an_episode_starts(env: Any, counter: str) -> None:
    model = counting(A2C, env, 5, counter)
    for _ in range(4):
        rollout = collect(model)
        assert set(rollout.starts.any(1).nonzero().flatten().tolist()) <= set(rollout.resets) <= set(range(5))


def test_learn_starts_over_unless_told_to_go_on(counter: str) -> None:
    model = counting(PPO, script([[0.0]] * 50), 4, counter)
    model.learning_rate = 0.0
    model._setup_lr_schedule()
    model.learn(8)
    assert counts(model.rollout) == [5, 6, 7, 8]
    model.learn(4, reset_num_timesteps=False)
    assert counts(model.rollout) == [9, 10, 11, 12]
    model.learn(4)
    assert counts(model.rollout) == [1, 2, 3, 4]


def test_the_stored_state_is_the_one_before_the_first_step(counter: str) -> None:
    model = counting(A2C, script([[0.0]] * 50), 4, counter)
    states: list[Tensor] = [collect(model).state["count"] for _ in range(3)]
    assert torch.cat(states).flatten().tolist() == [0, 4, 8]
