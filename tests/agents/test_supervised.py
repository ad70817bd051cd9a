"""Supervised: its loss by hand, its weights, what it refuses, metrics of the task, and that it learns."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents import PPO, Supervised
from agents.collect import SequenceCollector, StepCollector
from agents.evaluation import evaluate, play
from agents.metrics.report import log_metrics, pack_metrics
from envs.mapping.environment import Mapping
from envs.repeat_first import RepeatFirst
from envs.tasks.graphs.traversal import GraphTraversal
from envs.tasks.sequence.copy import Copy
from envs.tensor_env import TensorEnv
from envs.tmaze import TMaze
from policies.memories.time.unroll import unroll


class Parts(TensorEnv):
    """Two digits a step, each right or wrong by itself; only the first counts at even steps, both at odd ones.

    Metric `wrong`: wrong digits among those that count.
    """

    state_names = ("shown",)
    metric_names = ("wrong", "never")

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, spaces.Box(0.0, 1.0, (2,)), spaces.MultiDiscrete([3, 2]), horizon=4)

    def _begin(self, where: Tensor | None) -> None:
        self.shown = torch.rand(self.num_envs, 2, generator=self.generator)

    def _target(self) -> Tensor:
        return (self.shown * torch.tensor([3, 2])).long()

    def _weight(self) -> Tensor:
        return torch.tensor([1.0, float(self._elapsed % 2)]).expand(self.num_envs, 2)

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        weight = self._weight()
        wrong = (action != self._target()) * weight
        self._measure(wrong=(wrong.sum(1), weight.sum(1)), never=(wrong.sum(1), torch.zeros(self.num_envs)))
        self.shown = torch.rand(self.num_envs, 2, generator=self.generator)
        return -wrong.sum(1), None, None

    def _observe(self) -> Tensor:
        return self.shown.clone()

    def _describe(self) -> dict[str, Any]:
        return {"target": self._target(), "weight": self._weight().clone()}


def supervised(env: TensorEnv, memory: str = "gru", **kwargs: Any) -> Supervised:
    policy = {"memory": memory, "memory_kwargs": kwargs.pop("memory_kwargs", {"hidden_size": 8})}
    return Supervised("MemoryPolicy", env, policy_kwargs=policy, seed=0, device="cpu", **kwargs)


def collected(model: Supervised) -> Any:
    """A rollout with its graph, the first or one that follows."""
    _, callback = model._setup_learn(1000, reset_num_timesteps=model.num_timesteps == 0)
    callback.on_training_start({}, {})
    model.collect_rollouts(model.env, callback, model.rollout, model.n_steps)
    return model.rollout


def test_the_loss_is_the_weighted_cross_entropy_of_what_is_scored() -> None:
    model = supervised(Parts(5), n_steps=6)
    rollout = collected(model)
    assert rollout.weights.shape == (6, 5, 2)
    policy = model.policy
    with torch.no_grad():
        initial = policy.initial_state(5)
        latents = unroll(policy.memory, rollout.obs, rollout.starts, initial).outputs
        logits = policy.action_net(latents)
        first = torch.nn.functional.cross_entropy(
            logits[..., :3].flatten(0, 1), rollout.targets[..., 0].flatten(), reduction="none"
        )
        second = torch.nn.functional.cross_entropy(
            logits[..., 3:].flatten(0, 1), rollout.targets[..., 1].flatten(), reduction="none"
        )
        weights = rollout.weights.flatten(0, 1)
        expected = ((first * weights[:, 0] + second * weights[:, 1]).sum() / weights.sum()).item()
    assert weights.sum() == 5 * (6 + 3)
    found = model.learn_from(rollout)
    assert found["train/target_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert found["train/loss"].item() == pytest.approx(expected, rel=1e-5)


def test_targets_belong_to_the_observation_they_stand_beside() -> None:
    rollout = collected(supervised(RepeatFirst(4, length=3), n_steps=7))
    shown = rollout.obs[..., :4].argmax(-1)
    for t in range(7):
        assert torch.equal(rollout.targets[t], shown[t - t % 3])  # the symbol at the beginning of the episode


def test_the_memorys_own_losses_enter_with_their_weight() -> None:
    sizes = {"hidden_size": 6, "key_size": 4, "value_size": 4, "memory_units": 4, "heads": 1}
    model = supervised(RepeatFirst(3), "mnm-p", memory_kwargs=sizes, aux_coef=0.5)
    found = model.learn_from(collected(model))
    whole = found["train/target_loss"] + 0.5 * found["train/meta_loss"]
    torch.testing.assert_close(found["train/loss"], whole)
    assert found["train/meta_loss"] > 0


def test_it_answers_with_what_is_most_probable() -> None:
    model = supervised(RepeatFirst(16))
    rollout = collected(model)
    with torch.no_grad():
        logits = model.policy.action_net(rollout.latents)
    assert torch.equal(rollout.actions, logits.argmax(-1))


def test_metrics_are_sums_over_sums(tmp_path: Any) -> None:
    env = Parts(6)
    model = supervised(env, n_steps=4)
    rollout = collected(model)
    wrong = ((rollout.actions != rollout.targets) * rollout.weights).sum()
    log_metrics(model, pack_metrics(model, model.learn_from(rollout)))
    logged = model.logger.name_to_value
    assert logged["task/wrong"] == pytest.approx((wrong / rollout.weights.sum()).item(), rel=1e-6)
    assert "task/never" not in logged  # nothing counted: there is no number, rather than a zero


@pytest.mark.parametrize("episodes", [3, 7])
def test_evaluation_counts_the_metrics_of_the_episodes_it_counts(episodes: int) -> None:
    env = Parts(5)
    seen: list[tuple[Tensor, Tensor]] = []

    def act(obs: Tensor, starts: Tensor | None) -> Tensor:
        action = torch.zeros(5, 2, dtype=torch.long)
        info = env.describe()
        seen.append((((action != info["target"]) * info["weight"]).sum(1), info["weight"].sum(1)))
        return action

    score = play(act, env, episodes, seed=3)
    quota = [episodes // 5 + (copy < episodes % 5) for copy in range(5)]
    pairs = [(seen[step][0][copy], seen[step][1][copy]) for copy in range(5) for step in range(4 * quota[copy])]
    expected = sum(float(wrong) for wrong, _ in pairs) / sum(float(count) for _, count in pairs)
    assert score.metrics == {"wrong": pytest.approx(expected)}
    assert score.as_dict()["metrics"] == score.metrics


def test_an_environment_without_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="gives no targets"):
        supervised(TMaze(2), n_steps=4)


def test_ppo_trains_on_the_same_task_by_its_reward() -> None:
    model = PPO("MemoryPolicy", Parts(4), n_steps=0, policy_kwargs={"memory": "gru"}, seed=0, device="cpu")
    before = model.policy.action_net.weight.clone()
    model.learn(64, log_interval=None)
    assert not torch.equal(model.policy.action_net.weight, before)
    weights = 4 * (4 + 2)  # of four environments in four steps: the first digit at each, the second at every other
    wrong = -model.rollout.rewards.sum().item() / weights
    assert model.logger.name_to_value["task/wrong"] == pytest.approx(wrong)


def test_it_learns_where_identity_cannot() -> None:
    """RepeatFirst of 8 answers: without memory at most 1/8 + 7/8 · 1/4 = 0.34."""
    returns = {}
    for memory in ("gru", "identity"):
        kwargs = {"memory_kwargs": {"hidden_size": 24}} if memory == "gru" else {"memory_kwargs": {}}
        model = supervised(RepeatFirst(32, length=8), memory, learning_rate=5e-3, **kwargs)
        model.learn(32 * 8 * 120)
        returns[memory] = evaluate(model, RepeatFirst(64, length=8), 256, deterministic=True, seed=1).mean
    assert returns["gru"] > 0.95
    assert returns["identity"] < 0.42
    assert np.isfinite(list(returns.values())).all()


SIZES: dict[str, dict[str, Any]] = {
    "gru": {"hidden_size": 8},
    "dnc": {"hidden_size": 8, "slots": 6, "word_size": 4, "read_heads": 1},
    "mnm-p": {"hidden_size": 6, "key_size": 4, "value_size": 4, "memory_units": 4, "heads": 1},
    "multigrid": {},
}


@pytest.mark.parametrize("memory", SIZES)
@pytest.mark.parametrize("n_steps", [0, 7])
def test_whole_sequences_are_the_steps_they_stand_for(memory: str, n_steps: int) -> None:
    """Mapping for maps and questions, RepeatFirst for episodes that end within a rollout.

    These are two ways to float32 numbers, and Adam makes much of little: hence the tolerance. The conformance suite
    holds every memory's sequence to its steps in float64.
    """
    envs = [Mapping(3, size=7, horizon=9) if memory == "multigrid" else RepeatFirst(3, length=5) for _ in range(2)]
    models = [supervised(env, memory, memory_kwargs=SIZES[memory], n_steps=n_steps) for env in envs]
    models[1].whole_sequences = False
    whole, stepped = models
    close = {"rtol": 1e-3, "atol": 1e-4, "check_dtype": False}
    assert envs[0].ignores_actions
    for _ in range(3):  # the state is carried where a rollout is shorter or longer than an episode
        rollouts = [collected(model) for model in models]
        for name in ("starts", "actions", "rewards", "terminated", "targets", "weights", "latents"):
            torch.testing.assert_close(getattr(rollouts[0], name), getattr(rollouts[1], name), **close)
        assert rollouts[0].resets == rollouts[1].resets
        found = [model.learn_from(rollout) for model, rollout in zip(models, rollouts, strict=True)]
        torch.testing.assert_close(found[0], found[1], **close)
        log_metrics(whole, pack_metrics(whole, found[0]))
        log_metrics(stepped, pack_metrics(stepped, found[1]))
        for name, value in whole.rollout_state.memory.items():
            torch.testing.assert_close(value, stepped.rollout_state.memory[name], **close)
    for ours, theirs in zip(whole.policy.parameters(), stepped.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **close)
    for key in ("rollout/ep_rew_mean", "task/f1"):
        assert whole.logger.name_to_value.get(key) == pytest.approx(stepped.logger.name_to_value.get(key))
    assert torch.equal(envs[0].generator.get_state(), envs[1].generator.get_state())


@pytest.mark.parametrize("n_steps", [0, 5])
def test_a_preview_trains_exactly_as_the_steps_do(n_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, also where a rollout ends within an episode, and the next one beyond its end."""
    weights, logged, take = [], [], Copy._take
    for previews in (True, False):
        model = supervised(Copy(3, min_length=1, max_length=6), "dnc", memory_kwargs=SIZES["dnc"], n_steps=n_steps)
        with monkeypatch.context() as patch, mock.patch.object(Copy, "_take", autospec=True, side_effect=take) as taken:
            if not previews:
                patch.setattr(Copy, "previews", False)
            model.learn(200)
        assert bool(taken.call_count) == previews
        weights.append(torch.cat([value.flatten() for value in model.policy.parameters()]))
        logged.append({key: model.logger.name_to_value[key] for key in ("rollout/ep_rew_mean", "task/error")})
    assert torch.equal(*weights)
    assert logged[0] == pytest.approx(logged[1], rel=1e-12)


def test_lessons_that_depend_on_the_answers_train_as_sequences() -> None:
    """A curriculum changes the next episode, not the current one, so a rollout of one episode is still a sequence."""
    kwargs = {"curriculum": True, "lesson": 2, "pass_mark": 0.01, "window": 1}
    models = [supervised(GraphTraversal(4, **kwargs), memory_kwargs={"hidden_size": 8}) for _ in range(2)]
    models[1].whole_sequences = False
    close = {"rtol": 1e-3, "atol": 1e-4}
    for _ in range(3):
        ours, theirs = (collected(model) for model in models)
        for name in ("starts", "rewards", "terminated", "targets", "weights", "latents"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **close)
        torch.testing.assert_close(models[0].learn_from(ours), models[1].learn_from(theirs), **close)
    levels = [int(model.tensor_env.level) for model in models]
    assert levels[0] == levels[1]
    assert [type(model.collector()) for model in models] == [SequenceCollector, StepCollector]
    model = models[0]
    model.tensor_env.step(model.tensor_env.targets[0])  # user code moves the environments: no preview fits a rollout
    moved = collected(model)
    assert moved.terminated[-2].all()
    assert not moved.terminated[-1].any()
    torch.testing.assert_close(model.tensor_env.describe()["target"], model.tensor_env.targets[1])


def test_bf16_learns_from_whole_sequences_and_from_nothing_else() -> None:
    """A rollout of multigrid in bfloat16 is near that in float32; its state and what is learned are float32."""
    models = [
        supervised(Mapping(3, size=7), "multigrid", memory_kwargs={}, precision=kind) for kind in ("float32", "bf16")
    ]
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    rollouts = [collected(model) for model in models]
    for name in ("latents", "grids"):
        ours, theirs = (getattr(rollout, name) for rollout in rollouts)
        assert ours.dtype == theirs.dtype == torch.float32
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02)
    models[1].learn_from(rollouts[1])
    assert {value.dtype for value in models[1].rollout_state.memory.values()} == {torch.float32}
    kwargs = {"n_steps": 5, "memory_kwargs": {"hidden_size": 16}}
    lstms = [supervised(RepeatFirst(3, length=5), "lstm", precision=kind, **kwargs) for kind in ("float32", "bf16")]
    ours, theirs = (collected(model).latents for model in lstms)
    assert not torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02)
    with pytest.raises(ValueError, match="supervised in an environment whose observations do not depend on actions"):
        supervised(Mapping(3, size=7, trajectory="explore"), "multigrid", memory_kwargs={}, precision="bf16")
    with pytest.raises(ValueError, match="dnc does not support it on cpu"):
        supervised(RepeatFirst(3, length=5), "dnc", memory_kwargs=SIZES["dnc"], precision="bf16")


def test_a_callback_that_stops_leaves_environment_and_memory_at_one_step() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return False

    model = supervised(RepeatFirst(3, length=5), n_steps=7)
    model.learn(1000, Stop())
    assert model.num_timesteps == 3 * 7
    assert model.tensor_env._elapsed == 7 % 5
    ends = unroll(model.policy.memory, model.rollout.obs, model.rollout.starts, model.rollout.state).state
    for name, value in ends.items():
        torch.testing.assert_close(model.rollout_state.memory[name], value)


def test_what_is_missing_is_named_first() -> None:
    """CartPole has neither right answers nor episodes of a fixed length; only the first cannot be helped."""
    with pytest.raises(ValueError, match="gives no targets to learn from"):
        Supervised("MemoryPolicy", "CartPole-v1", policy_kwargs={"memory": "gru"}, device="cpu")
