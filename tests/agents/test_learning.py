"""Memory is what it takes: on RepeatFirst the agents with one pass a bar that no agent without one can reach.

Episodes of 8 answers among 4 symbols. Without memory the best is (1 + 7 / 4) / 8 = 0.344 (`RepeatFirst`'s docstring:
the first answer can be read off, the other seven are guesses); with memory it is 1. The bar for memory is 0.8. The
memoryless agent may not lie above its own best by more than chance: an average over 2,000 episodes deviates by about
0.003.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy

from agents import A2C, PPO, MemoryOnPolicyAlgorithm
from agents.environments import TensorVecEnv
from envs.repeat_first import RepeatFirst

MEMORYLESS = (1 + 7 / 4) / 8

SETTINGS: dict[type[MemoryOnPolicyAlgorithm], tuple[int, dict[str, Any]]] = {
    PPO: (20_480, {"n_steps": 16, "n_epochs": 4}),
    A2C: (92_160, {"n_steps": 8, "gae_lambda": 0.95, "normalize_advantage": True, "use_rms_prop": False}),
}


def score(learner: type[MemoryOnPolicyAlgorithm], memory: str) -> float:
    """Return of 2,000 greedy episodes after training."""
    steps, own = SETTINGS[learner]
    model = learner(
        "MemoryPolicy",
        RepeatFirst(32, length=8, symbols=4),
        learning_rate=3e-3,
        gamma=0.9,
        ent_coef=0.01,
        reward_scale=8.0,
        policy_kwargs={"memory": memory, "memory_kwargs": {} if memory == "identity" else {"hidden_size": 32}},
        seed=0,
        **own,
    ).learn(steps, log_interval=None)
    mean, _ = evaluate_policy(model, TensorVecEnv(RepeatFirst(200, length=8, symbols=4)), n_eval_episodes=2000)
    return float(np.mean(mean))


@pytest.mark.parametrize("learner", SETTINGS)
def test_memory_passes_the_bar_and_none_does_not(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    assert score(learner, "gru") > 0.8
    assert 0.25 < score(learner, "identity") < MEMORYLESS + 0.02
