"""Invalid actions: masks while acting, in the replay, in evaluation and from environments on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from agent_stubs import SMALL, collect
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from masked_env import CHOICES, LENGTH, VALID, HostLedge, Ledge
from stable_baselines3.common.vec_env import DummyVecEnv
from tape import Tape

from agents import A2C, PPO, MemoryOnPolicyAlgorithm, Supervised, as_tensor_env
from agents.evaluation import evaluate, random_score
from agents.scale.cuda_graphs.replay import Graphs
from agents.scale.executor import Executor
from agents.view.session import Session
from policies.memories import built_in

LEARNERS = [A2C, PPO, Supervised]
BEST = LENGTH * (11 / 3) / (CHOICES - 1)
"""Mean of the greater of 2 of the numbers 0..5 is 11/3."""
RANDOM = LENGTH * 2.5 / (CHOICES - 1)
"""Of a random one of the two."""


def build(learner: type[MemoryOnPolicyAlgorithm], env: Any, memory: str = "gru", **kwargs: Any) -> Any:
    if learner is PPO:
        kwargs = {"n_epochs": 2, "n_minibatches": 2, **kwargs}
    policy_kwargs = {"memory": memory, "memory_kwargs": SMALL.get(memory, {})}
    if "optimizer_class" in kwargs:
        policy_kwargs["optimizer_class"] = kwargs.pop("optimizer_class")
    kwargs = {"n_steps": LENGTH + 1, "seed": 0, "device": "cpu", **kwargs}
    return learner("MemoryPolicy", env, policy_kwargs=policy_kwargs, **kwargs)


def taken_are_valid(model: MemoryOnPolicyAlgorithm) -> bool:
    rollout = model.rollout
    assert rollout.masks is not None
    assert rollout.masks.dtype == torch.bool
    actions = rollout.actions.view(*rollout.rewards.shape, -1, 1).long()
    masks = rollout.masks.view(*actions.shape[:3], -1)
    return bool(masks.gather(3, actions).all())


@pytest.mark.parametrize("memory", built_in())
@pytest.mark.parametrize("learner", [A2C, PPO])
def test_no_invalid_action_is_taken_with_any_memory(learner: type[MemoryOnPolicyAlgorithm], memory: str) -> None:
    model = build(learner, Ledge(3), memory)
    model.learn(2 * 3 * (LENGTH + 1), log_interval=None)  # what is logged stays readable
    assert taken_are_valid(model)
    assert dict(model.logger.name_to_value)["task/invalid"] == 0
    assert model.logger.name_to_value["rollout/valid_actions"] == pytest.approx(VALID / CHOICES)
    assert 0 < model.logger.name_to_value["train/entropy"] <= np.log(VALID) + 1e-6


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("learner", LEARNERS)
def test_no_invalid_action_is_taken_by_any_learner(
    learner: type[MemoryOnPolicyAlgorithm], parts: int, dtype: torch.dtype
) -> None:
    model = build(learner, Ledge(4, parts=parts, dtype=dtype))
    model.learn(3 * 4 * (LENGTH + 1))
    assert taken_are_valid(model)
    score = evaluate(model, Ledge(4, parts=parts), 16, seed=0)
    assert score.metrics["invalid"] == 0
    assert score.mean_length == LENGTH


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("memory", ["gru", "identity", "mnm-p"])
def test_the_ratio_is_one_before_the_first_update(memory: str, parts: int) -> None:
    model = build(PPO, Ledge(6, parts=parts), memory, n_epochs=1)
    model.learn(2 * 6 * (LENGTH + 1))
    rollout = collect(model)
    for index in torch.randperm(6).tensor_split(3):
        minibatch = rollout.environments(index)
        judgement, _ = model.evaluate_actions(minibatch)
        assert (judgement.log_prob - rollout.log_probs[:, index]).abs().max() <= 1e-6
        minibatch.masks = None  # the test can fail
        assert (model.evaluate_actions(minibatch)[0].log_prob - rollout.log_probs[:, index]).abs().max() > 0.1


def test_without_its_masks_the_task_cannot_be_done() -> None:
    """With them the episodes are whole from the first step, and what is learned is which valid path pays."""
    kwargs = {"learning_rate": 1e-2, "n_epochs": 4, "memory": "identity"}
    masked = build(PPO, Ledge(32), **kwargs).learn(30 * 32 * (LENGTH + 1))
    blind = build(PPO, Ledge(32, hide=True), **kwargs).learn(30 * 32 * (LENGTH + 1))
    assert evaluate(masked, Ledge(32), 128, True, seed=1).mean > 0.95 * BEST
    assert evaluate(blind, Ledge(32, hide=True), 128, True, seed=1).mean < 0.3 * BEST
    assert random_score(Ledge(32), 512, seed=1).mean == pytest.approx(RANDOM, rel=0.1)
    assert random_score(Ledge(32, hide=True), 128, seed=1).mean < 0.3 * BEST


@pytest.mark.parametrize("whole", [True, False])
def test_supervised_answers_among_the_valid(whole: bool) -> None:
    """In whole sequences and step by step alike."""
    model = build(Supervised, Ledge(8, deadly=False), n_steps=LENGTH, learning_rate=1e-2)
    model.whole_sequences = whole
    model.learn(60 * 8 * LENGTH, log_interval=None)
    assert taken_are_valid(model)
    assert dict(model.logger.name_to_value)["task/invalid"] == 0
    assert evaluate(model, Ledge(8, deadly=False), 64, True, seed=1).mean > 0.95 * BEST


def test_whole_sequences_and_single_steps_learn_the_same() -> None:
    found = []
    for whole in (True, False):
        model = build(Supervised, Ledge(4, deadly=False), n_steps=LENGTH)
        model.whole_sequences = whole
        model.learn(3 * 4 * LENGTH)
        found.append(model.policy.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)


def host(tells: str, kind: str, start: int = 0) -> Any:
    makers: Any = [lambda: HostLedge(tells, start) for _ in range(3)]
    if kind == "sb3":
        return DummyVecEnv(makers)
    return (
        HostLedge(tells, start) if kind == "single" else SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    )


@pytest.mark.parametrize("kind", ["single", "vector", "sb3"])
@pytest.mark.parametrize("tells", ["method", "info"])
def test_environments_on_the_host_say_what_is_valid(tells: str, kind: str) -> None:
    for start in (0, 2):
        env = as_tensor_env(host(tells, kind, start))
        model = build(PPO, env)
        model.learn(4 * model.n_envs * (LENGTH + 1))
        assert taken_are_valid(model)
        score = evaluate(model, env, 4, seed=0)
        assert score.mean_length == LENGTH, "an invalid action was taken"
        assert random_score(env, 4, seed=0).mean_length == LENGTH
    assert evaluate(model, as_tensor_env(host("nothing", kind, start)), 20, seed=0).mean_length < LENGTH


class Batched(VectorEnv[Any, Any, Any]):
    """A vector environment that is no batch of single ones; only some of its infos have a mask."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    num_envs, single_observation_space = 2, HostLedge.observation_space
    single_action_space = gymnasium.spaces.Discrete(3)
    observation_space = action_space = None

    def reset(self, **_: Any) -> Any:
        mask = np.array([[1, 0, 0], [0, 0, 0]])
        return np.zeros((2, 1), np.float32), {"action_mask": mask, "_action_mask": np.array([True, False])}

    def step(self, action: Any) -> Any:
        no = np.zeros(2, bool)
        return np.zeros((2, 1), np.float32), np.zeros(2), no, no, {}


def test_a_missing_mask_allows_everything() -> None:
    env = as_tensor_env(Batched())
    assert env.reset()[1]["action_mask"].tolist() == [[True, False, False], [True, True, True]]
    assert env.step(torch.zeros(2))[4]["action_mask"].all()


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_mask_that_allows_nothing_is_refused(
    learner: type[MemoryOnPolicyAlgorithm], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Ledge._draw

    def broken(self: Ledge) -> torch.Tensor:
        valid = draw(self)
        valid[1] = False
        return valid

    monkeypatch.setattr(Ledge, "_draw", broken)
    with pytest.raises(ValueError, match=f"allows no action at {LENGTH + 1} observations"):
        build(learner, Ledge(2)).learn(2 * (LENGTH + 1))
    for score in (lambda env: random_score(env, 2), lambda env: evaluate(build(learner, Ledge(2)), env, 2)):
        with pytest.raises(ValueError, match="allows no action"):
            score(Ledge(2))


def test_masks_of_the_wrong_width_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledge, "_describe", lambda self: {"action_mask": torch.ones(self.num_envs, 4)})
    with pytest.raises(ValueError, match=r"\(2, 4\), expected \[num_envs, 6\]"):
        build(PPO, Ledge(2)).learn(2)
    with pytest.raises(ValueError, match=r"\(2, 4\), expected \[num_envs, 6\]"):
        random_score(Ledge(2), 2)


def test_the_window_shows_the_masked_probabilities() -> None:
    env = Ledge(1)
    session = Session(env, build(A2C, Ledge(2)).policy, seed=0)
    for _ in range(LENGTH):
        assert session.probabilities is not None
        assert ((session.probabilities > 0) == env.valid[0, 0].numpy()).all()
        assert session.probabilities.sum() == pytest.approx(1)
        session.step()
    assert session.returns, "the episode ended early: an invalid action was taken"
    assert session.steps == LENGTH


def test_predict_of_the_model_takes_masks() -> None:
    model = build(PPO, Ledge(2))
    obs, mask = np.zeros((2, 1), np.float32), np.eye(CHOICES, dtype=bool)[[4, 1]]
    state: Any = None
    for _ in range(3):
        actions, state = model.predict(obs, state, np.zeros(2, bool), action_masks=mask)
        assert actions.tolist() == [4, 1]


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("parts", [1, 2])
def test_masked_iterations_are_replayed_as_graphs(
    learner: type[MemoryOnPolicyAlgorithm], parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tape does the device's work again and runs no Python: a mask that were read on the host would be an error."""
    monkeypatch.setenv("ENGRAM_NATIVE", "0")  # C loops, which a tape does not see, give other last bits
    found = []
    ways: list[Callable[[Any], Executor]] = [Executor, lambda model: Graphs(model, Tape, strict=True)]
    for way in ways:
        monkeypatch.setattr(MemoryOnPolicyAlgorithm, "make_executor", lambda model, way=way: way(model))
        model = build(learner, Ledge(4, parts=parts), optimizer_class=torch.optim.RMSprop)
        model.whole_sequences = False
        model.learn(5 * 4 * (LENGTH + 1))
        assert taken_are_valid(model)
        found.append(model.policy.state_dict())
    assert model.executor.graphs
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=0, msg=name)


def test_masks_go_on_where_a_checkpoint_left_off(tmp_path: Any) -> None:
    one = build(PPO, Ledge(2)).learn(4 * 2 * (LENGTH + 1))
    two = build(PPO, Ledge(2)).learn(2 * 2 * (LENGTH + 1))
    two.save(tmp_path / "half")
    two = PPO.load(tmp_path / "half", Ledge(2), device="cpu")
    two.learn(2 * 2 * (LENGTH + 1), reset_num_timesteps=False)
    for name, value in one.policy.state_dict().items():
        assert torch.equal(two.policy.state_dict()[name], value), name


class Stairs(gymnasium.Env[Any, Any]):
    """Choice `time % 3` alone is valid."""

    observation_space = gymnasium.spaces.Box(0.0, 9.0, (1,))
    action_space = gymnasium.spaces.Discrete(3)

    def action_masks(self) -> Any:
        return np.eye(3, dtype=bool)[self.time % 3]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_masks()[action], "an invalid action was taken"
        self.time += 1
        return np.full(1, self.time, np.float32), 1.0, self.time == 5, False, {}


def test_the_maskable_clients_of_sb3_contrib_play_by_the_masks() -> None:
    maskable = pytest.importorskip("sb3_contrib.common.maskable.evaluation")
    model = PPO("MemoryPolicy", Stairs(), n_steps=8, n_minibatches=1, policy_kwargs={"memory": "gru"}).learn(8)
    assert maskable.evaluate_policy(model, model.get_env(), 2) == (5, 0)
