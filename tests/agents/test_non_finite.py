"""What becomes infinite or NaN is named, with the step at which it was seen."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from agents import A2C, PPO, MemoryOnPolicyAlgorithm, NonFiniteError
from envs.repeat_first import RepeatFirst
from envs.tmaze import TMaze

GRU: dict[str, Any] = {"memory": "gru", "memory_kwargs": {"hidden_size": 8}}
both = pytest.mark.parametrize("learner", [A2C, PPO])


class Poisoned(TMaze):
    """A T-maze in which copy 1 goes wrong at one step of its life."""

    def __init__(self, what: str, when: int, value: float = float("nan")) -> None:
        super().__init__(3, length=2)
        self.what, self.when, self.value, self.time = what, when, value, 0

    def step(self, action: Tensor) -> Any:
        obs, reward, *rest = super().step(action)
        self.time += 1
        if self.time == self.when:
            assert isinstance(obs, Tensor)
            {"reward": reward, "observation": obs}[self.what][1] = self.value
        return obs, reward, *rest


def agent(learner: type[MemoryOnPolicyAlgorithm], env: Any, **kwargs: Any) -> MemoryOnPolicyAlgorithm:
    return learner("MemoryPolicy", env, n_steps=8, policy_kwargs=GRU, seed=0, **kwargs)


@both
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_observation(learner: type[MemoryOnPolicyAlgorithm], value: float) -> None:
    """It arrives with step 13, in the middle of the second rollout, after 3 * 13 environment steps."""
    with pytest.raises(NonFiniteError, match=r"^observation is not finite after 39 environment steps"):
        agent(learner, Poisoned("observation", 13, value)).learn(1000)


@both
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_reward(learner: type[MemoryOnPolicyAlgorithm], value: float) -> None:
    with pytest.raises(NonFiniteError, match=r"^reward is not finite after 39 environment steps"):
        agent(learner, Poisoned("reward", 13, value)).learn(1000)


@both
def test_a_parameter(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    model = agent(learner, RepeatFirst(2))
    model.learn(16)
    with torch.no_grad():
        model.policy.memory.rnn.weight_hh_l0[3, 2] = float("nan")
    with pytest.raises(NonFiniteError, match=r"parameter memory\.rnn\.weight_hh_l0 is not finite after 16 "):
        model.learn(16, reset_num_timesteps=False)


@both
def test_a_loss_that_runs_away(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    """Steps that are far too large end in an error that says so, never in a silent NaN."""

    class Amplified(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["lr"] = 1e30
            return super().step(closure)

    model = agent(learner, RepeatFirst(4))
    model.policy.optimizer = Amplified(model.policy.parameters(), lr=1.0)
    with pytest.raises(NonFiniteError, match=r"^parameter .* not finite after \d+ environment steps.*learning_rate"):
        model.learn(4000)


@both
def test_continuous_actions_do_not_hide_it(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    """A normal distribution samples from NaN without a word, where a categorical one does not."""

    class Env(gym.Env[Any, Any]):
        observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1, 1, (1,))
        time = 0

        def reset(self, **_: Any) -> Any:
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> Any:
            self.time += 1
            value = np.nan if self.time == 11 else 0.0
            return np.array([0.0, value], np.float32), 0.0, False, False, {}

    with pytest.raises(NonFiniteError, match=r"^observation is not finite after 11 environment steps"):
        agent(learner, Env()).learn(1000)


def test_a_finite_run_is_left_alone() -> None:
    agent(PPO, Poisoned("reward", 13, 1e6)).learn(48)
