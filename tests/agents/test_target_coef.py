"""`target_coef`: a supervised loss beside those of reinforcement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import LEARNERS, small
from torch import Tensor

from agents import PPO, MemoryOnPolicyAlgorithm, Supervised
from agents.evaluation import evaluate
from envs.mapping.environment import Mapping
from envs.repeat_first import RepeatFirst
from envs.tensor_env import Info, TensorEnv
from envs.tmaze import TMaze

LEARNS_BOTH = [row.learner for row in LEARNERS.values() if not row.targets]
"""Learners that learn from rewards and, with `target_coef`, from right answers."""


def build(learner: type[MemoryOnPolicyAlgorithm], env: TensorEnv, **kwargs: Any) -> MemoryOnPolicyAlgorithm:
    options = small(next(row for row in LEARNERS.values() if row.learner is learner))
    policy = {"memory": "gru", "memory_kwargs": {"hidden_size": 16}, "optimizer_class": torch.optim.SGD}
    return learner("MemoryPolicy", env, seed=0, device="cpu", **{"policy_kwargs": policy, **options, **kwargs})


def collected(model: MemoryOnPolicyAlgorithm) -> MemoryOnPolicyAlgorithm:
    """With a rollout that it has not learned from yet."""
    _, callback = model._setup_learn(1000)
    callback.on_training_start({}, {})
    model.collect_rollouts(model.env, callback, model.rollout, model.n_steps)
    return model


def gradients(model: MemoryOnPolicyAlgorithm) -> dict[str, Tensor]:
    """Of its rollout, without clipping, by the parameters' names."""
    model.max_grad_norm = 1e9
    model.learn_from(model.rollout)
    return {name: p.grad.clone() for name, p in model.policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("learner", LEARNS_BOTH)
def test_its_gradient_is_added_with_its_weight(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    """Rewards' and answers' gradients of one rollout, the second as `Supervised` computes it."""

    def model(target_coef: float) -> MemoryOnPolicyAlgorithm:
        env = Mapping(6, size=7, trajectory="explore")  # half of an action has no right answer
        return collected(build(learner, env, n_steps=25, target_coef=target_coef))

    both, rewards = model(0.7), model(0.0)
    assert both.rollout.weights is not None
    assert torch.equal(both.rollout.actions, rewards.rollout.actions)
    assert rewards.rollout.targets is None
    answers = build(Supervised, Mapping(6, size=7, trajectory="explore"), n_steps=25)
    answers.policy.load_state_dict(both.policy.state_dict(), strict=False)  # without statistics of values
    unrolled = answers.policy.remember_sequence(both.rollout.obs, both.rollout.starts, both.rollout.state)
    answers.rollout.targets, answers.rollout.weights = both.rollout.targets, both.rollout.weights
    answers.rollout.keep_graph(unrolled)
    answers.rollout.obs = both.rollout.obs
    parts = gradients(rewards), gradients(answers)
    for name, value in gradients(both).items():
        expected = sum(weight * part[name] for weight, part in zip((1, 0.7), parts, strict=True) if name in part)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("learner", LEARNS_BOTH)
def test_it_learns_answers_that_are_not_rewarded(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    """With hardly any reward, the task is learned with `target_coef` and not without."""

    def score(target_coef: float) -> float:
        adam = {"memory": "gru", "memory_kwargs": {"hidden_size": 16}}
        options = {"policy_kwargs": adam, "learning_rate": 1e-2, "max_grad_norm": 1.0, "normalize_values": False}
        env = RepeatFirst(16, length=3)
        model = build(
            learner, env, n_steps=12, vf_coef=0.0, ent_coef=0.1, target_coef=target_coef, reward_scale=1e-6, **options
        )
        model.learn(12 * 16 * 60)
        return float(evaluate(model, RepeatFirst(64, length=3), 64, deterministic=False).mean)

    assert score(1.0) > 0.8
    assert score(0.0) < 0.5


@pytest.mark.parametrize("learner", LEARNS_BOTH)
def test_without_right_answers_it_is_refused(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    with pytest.raises(ValueError, match=r"gives no targets to learn from; target_coef is 0\.5, expected 0"):
        build(learner, TMaze(2), target_coef=0.5)


class Weighted(RepeatFirst):
    """RepeatFirst with weights `[N, 1]`."""

    def _describe(self) -> Info:
        info = super()._describe()
        return {**info, "weight": info["weight"][:, None]}


class Unweighted(RepeatFirst):
    """RepeatFirst without weights."""

    def _describe(self) -> Info:
        return {"target": super()._describe()["target"]}


@pytest.mark.parametrize("learner", [*LEARNS_BOTH, Supervised])
def test_weights_of_another_shape_than_actions_are_refused(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    options = {} if learner is Supervised else {"target_coef": 0.5}
    with pytest.raises(ValueError, match=r'info\["weight"\] is \[4, 1\], expected \[4\] for Discrete'):
        build(learner, Weighted(4, length=3), n_steps=3, **options)
    with pytest.raises(ValueError, match=r'info\["weight"\] is missing, expected \[4\]'):
        build(learner, Unweighted(4, length=3), n_steps=3, **options)


def test_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    model = build(PPO, RepeatFirst(4), n_steps=4, target_coef=0.5).learn(16)
    model.save(tmp_path / "model")
    assert PPO.load(tmp_path / "model", RepeatFirst(4), device="cpu").target_coef == 0.5
