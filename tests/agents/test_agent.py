"""Agent: it remembers by itself, and acts as `predict` does where the caller remembers for it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from masked_env import CHOICES, Ledge

import agents
from agents import PPO, Agent, make_env
from agents.environments import HostEnv
from envs.repeat_first import RepeatFirst

SMALL: dict[str, Any] = {"n_steps": 8, "seed": 0, "device": "cpu"}


def trained(env: Any = None, memory: str = "gru") -> PPO:
    policy_kwargs = {"memory": memory, **({} if memory == "identity" else {"memory_kwargs": {"hidden_size": 8}})}
    return PPO("MemoryPolicy", env or RepeatFirst(4, length=3), policy_kwargs=policy_kwargs, **SMALL).learn(64)


def observations(*sizes: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).uniform(0, 1, (*sizes, 5)).astype(np.float32)


def test_it_acts_as_predict_does() -> None:
    """Over episodes that start at different times: states equal to the last bit."""
    model = trained()
    agent, state = Agent(model), None
    starts = np.array([[1, 1, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    for t, obs in enumerate(observations(5, 3)):
        expected, state = model.predict(obs, state, starts[t], deterministic=True)
        if t:
            agent.reset(starts[t])
        assert np.array_equal(agent.act(obs, deterministic=True), expected)
        assert agent.state is not None
        for name, value in state.items():
            assert torch.equal(agent.state[name], value)


@pytest.mark.parametrize("env", ["CartPole-v1", "an environment", "several"])
def test_an_agent_and_its_model_are_copied_and_pickled(env: str) -> None:
    """For another process, as of `multiprocessing` and Optuna."""
    made: Any = {"an environment": gymnasium.make("CartPole-v1"), "several": make_env("CartPole-v1", 2)}.get(env, env)
    model = PPO("MemoryPolicy", made, policy_kwargs={"memory": "gru"}, **SMALL).learn(16)
    agent, obs = Agent(model), np.zeros((3, 4), np.float32)
    agent.act(obs)
    twins = [copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))]
    expected = agent.act(obs, deterministic=True)
    for twin in twins:
        assert np.array_equal(twin.act(obs, deterministic=True), expected)
        assert torch.equal(twin.state["hidden"], agent.state["hidden"])  # type: ignore[index]
    assert len(pickle.dumps(agent)) < len(pickle.dumps(model))  # the learner and its environments stay behind
    assert pickle.loads(pickle.dumps(model)).learn(16, reset_num_timesteps=False).num_timesteps == 32


def test_one_environment_or_several() -> None:
    model = trained()
    several, single = Agent(model), Agent(model)
    for obs in observations(4, 2):
        both = several.act(obs, deterministic=True)
        one = single.act(obs[0], deterministic=True)
        assert both.shape == (2,)
        assert one.shape == ()
        assert one == both[0]
    assert (several.num_envs, single.num_envs) == (2, 1)


def test_reset_forgets_whom_it_is_told_to() -> None:
    agent, obs = Agent(trained()), observations(3)

    def states() -> np.ndarray[Any, Any]:
        agent.act(obs)
        assert agent.state is not None
        return agent.state["hidden"].numpy().reshape(3, -1).copy()

    first, second = states(), states()
    assert not np.allclose(first, second)
    for index, who in ((1, [1]), ([0, 2], [0, 2]), (np.array([True, False, True]), [0, 2]), (-1, [2])):
        agent.reset()
        states(), states()
        agent.reset(index)
        now = states()
        fresh = [row for row in range(3) if np.allclose(now[row], first[row], atol=1e-6)]
        assert fresh == who
    agent.reset()
    assert agent.num_envs == 0
    assert np.array_equal(states(), first)


def test_mistakes_are_named() -> None:
    agent = Agent(trained())
    with pytest.raises(IndexError, match="index 0, but this agent plays 0 environments"):
        agent.reset(0)
    agent.act(observations(3))
    with pytest.raises(ValueError, match="num_envs=3, but the observation has 1: call reset"):
        agent.act(observations())
    with pytest.raises(IndexError, match=r"shape \(2,\), but this agent plays 3"):
        agent.reset(np.array([True, False]))
    for wrong in (7, [0, -4], 1.5, "first"):
        with pytest.raises(IndexError, match=r"reset got the index .*, but this agent plays 3 environments: expected"):
            agent.reset(wrong)  # type: ignore[arg-type]
    before = agent._starts.copy()
    agent.reset([])  # those of no environment whose episode is over
    agent.reset([1, -1])
    assert not before.any()
    assert agent._starts.tolist() == [False, True, True]
    with pytest.raises(ValueError, match="observation"):
        Agent(trained()).act(np.zeros(7, np.float32))


def test_it_is_loaded_from_a_runs_folder(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path / "checkpoints" / "step_64")
    agent, other = Agent.load(tmp_path, device="cpu"), Agent(model.policy)
    for obs in observations(4):
        assert agent.act(obs, deterministic=True) == other.act(obs, deterministic=True)
    with pytest.raises(agents.CheckpointError):
        Agent.load(tmp_path / "nothing")


def test_masks_and_dictionaries() -> None:
    masked = Agent(trained(Ledge(2)))
    for valid in (4, 2):
        assert masked.act(np.zeros(1, np.float32), action_masks=np.arange(CHOICES) == valid) == valid

    space = spaces.Dict([("image", spaces.Box(0, 1, (2, 2))), ("goal", spaces.Discrete(3))])

    class Pairs(gymnasium.Env[Any, Any]):
        observation_space, action_space = space, spaces.Box(-1.0, 1.0, (2,))

        def reset(self, **_: Any) -> Any:
            return space.sample(), {}

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action)
            return space.sample(), 0.0, False, False, {}

    env = Pairs()
    agent = Agent(trained(env))
    obs, _ = env.reset()
    for _ in range(3):
        obs, *_ = env.step(agent.act(obs))
    agent.reset()
    batch = {"goal": np.array([0, 2]), "image": np.zeros((2, 2, 2), np.float32)}  # in any order
    assert agent.act(batch).shape == (2, 2)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])  # the second looks actions up in a dictionary
def test_an_episode_of_gymnasium_is_played_by_the_lines_of_the_docs(env_id: str) -> None:
    env = gymnasium.make(env_id)
    model = trained(env)
    assert isinstance(model.tensor_env, HostEnv)
    agent = Agent(model)
    for seed in range(2):
        obs, _ = env.reset(seed=seed)
        agent.reset()
        over = False
        while not over:
            obs, _, terminated, truncated, _ = env.step(agent.act(obs))
            over = terminated or truncated
