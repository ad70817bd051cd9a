"""An agent for the tests of scores and of the command."""

from __future__ import annotations

import pytest

from agents import PPO, make_env


@pytest.fixture(scope="module")
def model() -> PPO:
    env = make_env("Engram/InvisibleGoalMaze-v0", 4)
    kwargs = {"memory": "gru", "memory_kwargs": {"hidden_size": 16}}
    return PPO("MemoryPolicy", env, policy_kwargs=kwargs, n_steps=8, n_minibatches=1, seed=0).learn(32)
