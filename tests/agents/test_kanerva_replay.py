"""PPO replays kanerva++ with the noise it acted with: before the first update every ratio is 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from agent_stubs import collect

from agents import PPO
from agents.rollout import Rollout
from envs.repeat_first import RepeatFirst

SIZES = {
    "lstm": {"hidden_size": 8, "output_size": 8, "latent_size": 4, "memory_size": 8, "crop_size": 4},
    "none": {"output_size": 8, "embedding_size": 16, "latent_size": 4, "memory_size": 8, "writer_features": 8},
}


def played(controller: str, sample: bool) -> tuple[PPO, Rollout]:
    """After an update, a rollout that begins in the middle of episodes and in which episodes start."""
    options: dict[str, Any] = {"controller": controller, "sample": sample, **SIZES[controller]}
    policy_kwargs = {"memory": "kanerva++", "memory_kwargs": options}
    model = PPO("MemoryPolicy", RepeatFirst(6, length=5), policy_kwargs=policy_kwargs, seed=0, n_steps=7, n_epochs=1)
    model.learn(2 * 7 * 6)
    rollout = collect(model)
    assert not rollout.starts[0].all()
    assert rollout.starts[1:].any()
    return model, rollout


@pytest.mark.parametrize("sample", [True, False])
@pytest.mark.parametrize("controller", sorted(SIZES))
def test_the_ratio_is_one_on_the_first_minibatch(controller: str, sample: bool) -> None:
    model, rollout = played(controller, sample)
    assert ("seed" in model.policy.initial_state(1)) == sample
    for index in torch.randperm(6).tensor_split(3):
        judgement, _ = model.evaluate_actions(rollout.environments(index))
        ratio = (judgement.log_prob - rollout.log_probs[:, index]).exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-6)


@pytest.mark.parametrize("controller", sorted(SIZES))
def test_other_noise_in_the_replay_is_noticed(controller: str) -> None:
    """The test above can fail: with other seeds in the stored state the ratio is not 1."""
    model, rollout = played(controller, True)
    state = {**rollout.state, "seed": rollout.state["seed"] + 1}
    judgement, _ = model.evaluate_actions(replace(rollout, state=state))
    running = ~rollout.starts[0]
    assert ((judgement.log_prob - rollout.log_probs)[0, running].abs() > 1e-5).any()
