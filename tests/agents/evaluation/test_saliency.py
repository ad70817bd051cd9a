"""Saliency: the gradients are those of the decisions that were made, for every memory, and show what an agent uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import MEMORIES, small

from agents import PPO, Supervised
from agents.evaluation.saliency import Saliency, figure, play_episode, saliency
from envs.repeat_first import RepeatFirst


def learner(memory: str, length: int = 6) -> PPO:
    options = {} if memory == "multigrid" else small(MEMORIES[memory])  # two channels may all be rectified to zero
    kwargs = {"memory": memory, "memory_kwargs": options}
    return PPO("MemoryPolicy", RepeatFirst(2, length=length), n_steps=6, seed=0, device="cpu", policy_kwargs=kwargs)


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_memory_has_one(memory: str) -> None:
    policy = learner(memory).policy
    episode = play_episode(policy, RepeatFirst(1, length=6), 6, seed=0)
    found = saliency(policy, episode)
    assert found.log_prob.shape == (6, 6)
    assert not np.triu(found.log_prob, 1).any()
    assert np.isfinite(found.log_prob).all()
    assert np.diag(found.log_prob).any()
    assert (np.tril(found.log_prob, -1).sum() > 0) == (memory != "identity")


def test_the_gradient_is_that_of_a_finite_difference() -> None:
    policy = learner("gru").policy.double()
    episode = play_episode(learner("gru").policy, RepeatFirst(1, length=6), 6, seed=0)
    episode = episode._replace(xs=episode.xs.double())
    found = saliency(policy, episode)

    def judged(xs: torch.Tensor) -> tuple[float, float]:
        with torch.no_grad():
            outputs = policy.memory.unroll(xs, None, policy.initial_state(1)).outputs
            step = policy.evaluate_latents(outputs, episode.actions)
        return float(step.log_prob[4, 0]), float(step.value[4, 0])

    gradients = []
    for entry in range(episode.xs.shape[-1]):
        bump = torch.zeros_like(episode.xs)
        bump[1, 0, entry] = 1e-6
        up, down = judged(episode.xs + bump), judged(episode.xs - bump)
        gradients.append([(above - below) / 2e-6 for above, below in zip(up, down, strict=True)])
    expected = np.linalg.norm(np.array(gradients), axis=0)
    np.testing.assert_allclose([found.log_prob[4, 1], found.value[4, 1]], expected, rtol=1e-5)


def test_an_agent_that_repeats_the_first_symbol_looks_at_the_first_one() -> None:
    model = Supervised(
        "MemoryPolicy",
        RepeatFirst(32, length=6),
        learning_rate=1e-2,
        seed=0,
        device="cpu",
        policy_kwargs={"memory": "gru", "memory_kwargs": {"hidden_size": 16}},
    )
    model.learn(32 * 6 * 150)
    episode = play_episode(model.policy, RepeatFirst(1, length=6), 6, deterministic=True, seed=0)
    found = saliency(model.policy, episode, critic=False)
    assert float(episode.rewards.sum()) == pytest.approx(1.0)
    assert (found.log_prob[1:].argmax(1) == 0).all()
    assert found.earlier_share() > 0.6
    assert not found.value.any()
    assert len(figure(found, "title").axes) == 2  # one picture and its scale


@pytest.mark.parametrize(
    ("rows", "share", "age"),
    [
        (
            [[2, 0, 0], [1, 3, 0], [3, 0, 1]],
            (0 + 1 / 4 + 3 / 4) / 3,
            2,
        ),  # a quarter is one step old, three quarters are two
        ([[1, 0, 0], [1, 1, 0], [0, 1, 1]], 1 / 3, 1),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 0]], 0, 0),
    ],
)
def test_what_the_command_says_of_it(rows: list[list[float]], share: float, age: int) -> None:
    norms = np.array(rows, float)
    found = Saliency(norms, np.zeros_like(norms), np.zeros(3))
    assert found.earlier_share() == pytest.approx(share)
    assert found.median_age() == age


def test_it_is_of_one_environment() -> None:
    with pytest.raises(ValueError, match="a single environment; there are 2"):
        play_episode(learner("gru").policy, RepeatFirst(2, length=6), 6)
