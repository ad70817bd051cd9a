"""Every kind of observation and action goes through both learners, prediction and checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from agents import A2C, PPO, MemoryOnPolicyAlgorithm

GRU: dict[str, Any] = {"memory": "gru", "memory_kwargs": {"hidden_size": 8}}
both = pytest.mark.parametrize("learner", [A2C, PPO])


class Spaces(gym.Env[Any, Any]):
    """Random observations of any space; episodes of 5 steps; checks the actions it is given."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 5, False, {}


VECTOR = spaces.Box(-1.0, 1.0, (3,))
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "vector": VECTOR,
    "float64": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "matrix": spaces.Box(-1.0, 1.0, (3, 2)),
    "discrete": spaces.Discrete(7),
    "multi-discrete": spaces.MultiDiscrete([2, 5]),
    "multi-binary": spaces.MultiBinary(4),
    "dict": spaces.Dict({"a": VECTOR, "b": spaces.Discrete(3), "query": spaces.Box(0.0, 1.0, (2,))}),
    "image": spaces.Box(0, 255, (36, 40, 3), np.uint8),
    "channels first": spaces.Box(0, 255, (3, 36, 40), np.uint8),
    "dict of image": spaces.Dict({"a": VECTOR, "view": spaces.Box(0, 255, (36, 40, 3), np.uint8)}),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(np.array([-0.1, 0.0], np.float32), np.array([0.1, 0.2], np.float32)),
    "box matrix": spaces.Box(-1.0, 1.0, (2, 2)),
    "box float64": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
}
CASES = [(name, "discrete") for name in OBSERVATIONS] + [("vector", name) for name in ACTIONS if name != "discrete"]


@both
@pytest.mark.parametrize(("observation", "action"), CASES)
def test_every_space(learner: type[MemoryOnPolicyAlgorithm], observation: str, action: str, tmp_path: Path) -> None:
    """Learn, predict, evaluate, save, load and learn on; the environment itself refuses actions outside its space."""
    env = Spaces(OBSERVATIONS[observation], ACTIONS[action])
    kwargs = dict(GRU)
    if "image" in observation or observation == "channels first":
        kwargs["features_extractor_kwargs"] = {"cnn_output_dim" if "dict" in observation else "features_dim": 16}
    model = learner("MemoryPolicy", env, n_steps=6, policy_kwargs=kwargs, seed=0, device="cpu").learn(12)
    venv = model.get_env()
    assert venv is not None
    obs = venv.reset()
    for deterministic in (True, False):
        actions, _ = model.predict(obs, deterministic=deterministic)
        assert ACTIONS[action].contains(actions[0]), actions
    mean, _ = evaluate_policy(model, venv, n_eval_episodes=2)
    assert mean == 5.0
    model.save(tmp_path / "it")
    again = learner.load(tmp_path / "it", env, device="cpu").learn(12, reset_num_timesteps=False)
    assert again.num_timesteps == 24


def test_images_arrive_channels_first_and_whole() -> None:
    """A picture that is red at the top left reaches the network so."""
    env = Spaces(OBSERVATIONS["image"], ACTIONS["discrete"])
    picture = np.zeros((36, 40, 3), np.uint8)
    picture[:5, :7, 0] = 255
    env.reset = lambda **_: (picture, {})  # type: ignore[method-assign]
    model = A2C("MemoryPolicy", env, policy_kwargs=GRU, seed=0)
    env_ = model.get_env()
    assert env_ is not None
    assert env_.reset().shape == (1, 36, 40, 3), "everybody but the network sees the environment's own picture"
    encoder, taken = model.policy.features_extractor, []
    assert type(encoder).__name__ == "NatureCNN"
    encoder.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    model.predict(env_.reset())
    (seen,) = taken
    assert seen.shape == (1, 3, 36, 40)
    assert seen[0, 0, :5, :7].min() == 1  # divided by 255
    assert seen.sum() == 5 * 7


def test_continuous_actions_are_cut_for_the_environment_and_not_for_the_learner() -> None:
    """Standard deviation 1 against bounds of 0.1: nearly all actions are cut, and the loss must not know."""
    env = Spaces(VECTOR, ACTIONS["box"])
    model = PPO("MemoryPolicy", env, n_steps=64, n_epochs=1, policy_kwargs=GRU, seed=0).learn(64)
    low, high = (torch.tensor(bound) for bound in (ACTIONS["box"].low, ACTIONS["box"].high))  # type: ignore[attr-defined]
    outside = (model.rollout.actions < low) | (model.rollout.actions > high)
    assert outside.float().mean() > 0.5


@pytest.mark.parametrize(("low", "high", "far"), [(0, 1000, True), (-0.01, 0.01, True), (2, 4, True), (-10, 1, False)])
def test_bounds_far_from_the_first_actions_give_a_warning(
    monkeypatch: pytest.MonkeyPatch, low: float, high: float, far: bool
) -> None:
    monkeypatch.setattr("policies.observations._warned", set())  # each line is given once in a process
    action = spaces.Box(low, high, (1,), np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PPO("MemoryPolicy", Spaces(VECTOR, action), device="cpu", n_steps=4, policy_kwargs=GRU)
    said = [str(each.message) for each in caught if "far from a standard normal distribution" in str(each.message)]
    assert len(said) == far
    assert all("RescaleAction(env, -1, 1)" in line for line in said)


def test_pendulum() -> None:
    model = PPO("MemoryPolicy", "Pendulum-v1", n_steps=32, n_epochs=1, policy_kwargs=GRU, seed=0).learn(64)
    assert model.rollout.actions.shape == (32, 1, 1)
    action, _ = model.predict(np.zeros(3, np.float32))
    assert action.shape == (1,)
    assert abs(action[0]) <= 2
