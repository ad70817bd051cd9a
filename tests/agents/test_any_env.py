"""Any Gymnasium environment in, one tensor interface out, and nothing of the trajectory lost on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import A2C, PPO, as_tensor_env, make_env
from agents.environments import HostEnv, TensorVecEnv
from agents.evaluation import evaluate
from agents.evaluation.scores import random_score
from envs.repeat_first import RepeatFirst
from envs.single_env import SingleEnv
from envs.tensor_env import TensorEnv

GRU: dict[str, Any] = {"memory": "gru", "memory_kwargs": {"hidden_size": 8}}


class Cut(gym.Env[Any, Any]):
    """Observation: 100 episode + step. Terminates at step `length`; `max_steps` is up to a TimeLimit around it."""

    observation_space = gym.spaces.Box(-1e6, 1e6, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int = 1000, first: int = 0) -> None:
        self.length, self.episode = length, first

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return np.array([100.0 * self.episode], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        obs = np.array([100.0 * self.episode + self.steps], np.float32)
        return obs, float(self.steps), self.steps == self.length, False, {}


def limited(length: int = 1000, first: int = 0, max_steps: int = 5) -> gym.Env[Any, Any]:
    return gym.wrappers.TimeLimit(Cut(length, first), max_steps)


WAYS: dict[str, Any] = {
    "gym.Env": lambda: limited(),
    "SyncVectorEnv, its default": lambda: SyncVectorEnv([limited]),
    "SyncVectorEnv, SAME_STEP": lambda: SyncVectorEnv([limited], autoreset_mode=AutoresetMode.SAME_STEP),
    "AsyncVectorEnv, SAME_STEP": lambda: AsyncVectorEnv([limited], autoreset_mode=AutoresetMode.SAME_STEP),
    "SB3 DummyVecEnv": lambda: DummyVecEnv([limited]),
    "SB3 DummyVecEnv with Monitor": lambda: make_vec_env(limited, 1),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_cut_episode_arrives_as_cut_with_its_last_observation(way: str) -> None:
    env = as_tensor_env(WAYS[way]())
    obs, _ = env.reset(seed=0)
    assert isinstance(obs, torch.Tensor)
    episode = obs.item() // 100
    for t in range(1, 13):
        obs, reward, terminated, truncated, info = env.step(torch.zeros(1, dtype=torch.int64))
        step = (t - 1) % 5 + 1
        assert reward.item() == step
        assert not terminated.any()
        assert truncated.item() == (step == 5) == ("final_obs" in info) == env.truncates
        if step == 5:
            assert info["final_obs"].item() == 100 * episode + 5
            episode += 1
            assert obs.item() == 100 * episode
        else:
            assert obs.item() == 100 * episode + step
    env.close()


@pytest.mark.parametrize("build", [SyncVectorEnv, DummyVecEnv])
def test_only_the_copy_that_ended_has_another_final_observation(build: Any) -> None:
    """Copy 0 terminates after 3 steps, copy 1 is cut after 5."""
    env = as_tensor_env(build([lambda: limited(3, 10), lambda: limited(1000, 20)]))
    env.reset(seed=0)
    ends = []
    for t in range(1, 7):
        obs, _, terminated, truncated, info = env.step(torch.zeros(2, dtype=torch.int64))
        if "final_obs" in info:
            ends.append((t, terminated.tolist(), truncated.tolist(), (info["final_obs"] % 100).flatten().tolist()))
            over = terminated | truncated
            assert torch.equal(info["final_obs"][~over], obs[~over])
            assert (obs[over] % 100 == 0).all()
    assert ends == [
        (3, [True, False], [False, False], [3, 3]),
        (5, [False, False], [False, True], [2, 5]),
        (6, [True, False], [False, False], [3, 1]),
    ]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
def test_the_trajectory_is_the_environments_own(env_id: str) -> None:
    """Against a plain loop over `gym.make` with the same seed and actions."""
    plain = gym.make(env_id)
    ours = make_env(env_id)
    expected, _ = plain.reset(seed=7)
    obs, _ = ours.reset(seed=7)
    plain.action_space.seed(1)
    ends = 0
    for _ in range(260):
        assert isinstance(obs, torch.Tensor)
        assert np.array_equal(obs[0].numpy(), expected)
        action = plain.action_space.sample()
        expected, reward, terminated, truncated, _ = plain.step(action)
        obs, rewards, terminations, truncations, info = ours.step(torch.as_tensor(np.asarray(action))[None])
        assert rewards.item() == np.float32(reward)
        assert (terminations.item(), truncations.item()) == (terminated, truncated)
        if terminated or truncated:
            ends += 1
            assert np.array_equal(info["final_obs"][0].numpy(), expected)
            expected, _ = plain.reset()
    assert ends or env_id == "Acrobot-v1"


def test_cartpole_is_cut_after_500_steps() -> None:
    """Two opposite pushes for each lean keep the pole up long enough for the clock to run out."""
    env = make_env("CartPole-v1")
    obs, _ = env.reset(seed=3)
    for t in range(1, 501):
        assert isinstance(obs, torch.Tensor)
        push = (obs[:, 2] + 0.3 * obs[:, 3] + 0.02 * obs[:, 0] + 0.05 * obs[:, 1] > 0).long()
        obs, _, terminated, truncated, _info = env.step(push)
        assert not terminated.any()
        assert truncated.item() == (t == 500)


@pytest.mark.parametrize("learner", [A2C, PPO])
@pytest.mark.parametrize(
    "build",
    [
        lambda: "CartPole-v1",
        lambda: gym.make("CartPole-v1"),
        lambda: gym.make_vec("CartPole-v1", 3, vectorization_mode="sync"),
        lambda: make_vec_env("CartPole-v1", 3),
        lambda: make_env("CartPole-v1", 3),
        lambda: "Engram/TMaze-v0",
        lambda: gym.make("Engram/TMaze-v0", length=2),
        lambda: TensorVecEnv(RepeatFirst(2)),
    ],
    ids=["id", "Env", "make_vec", "VecEnv", "make_env", "our id", "our single", "TensorVecEnv"],
)
def test_learners_take_them_all(learner: Any, build: Any) -> None:
    model = learner("MemoryPolicy", build(), n_steps=8, policy_kwargs=GRU, seed=0).learn(8 * 3)
    assert model.num_timesteps >= 24
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())


class Worded(Cut):
    """`Cut` with a nested observation that has text in it, which SB3's own vector environments cannot hold."""

    observation_space = gym.spaces.Dict(  # type: ignore[assignment]
        at=gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.Box(-1.0, 1.0, (2,)))), said=gym.spaces.Text(8)
    )

    def seen(self) -> Any:
        return {"at": (self.steps % 3, np.full(2, 0.5, np.float32)), "said": "go on"}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.seen(), *super().step(action)[1:]


@pytest.mark.parametrize("env", [Cut, Worded])
def test_evaluation_takes_what_learners_take(env: type[Cut]) -> None:
    """Every episode has the return 1 + 2 + 3, of the agent and of random actions."""
    model = PPO("MemoryPolicy", env(3), n_steps=4, n_epochs=1, policy_kwargs=GRU, seed=0, device="cpu").learn(4)
    builds: list[Any] = [
        lambda: env(3),
        lambda: SyncVectorEnv([lambda: env(3)] * 2),
        lambda: as_tensor_env(env(3)),
    ]
    builds += [lambda: DummyVecEnv([lambda: env(3)] * 2)] if env is Cut else []
    for build in builds:
        for score in (evaluate(model, build(), 3), evaluate(model.policy, build(), 3), random_score(build(), 3)):
            assert (score.mean, score.std, score.mean_length) == (6.0, 0.0, 3.0)
    with pytest.raises(TypeError, match="expected a Gymnasium id, Env, VectorEnv, SB3 VecEnv or TensorEnv, not int"):
        evaluate(model, 3, 1)  # type: ignore[arg-type]


def test_a_truncated_episode_bootstraps_through_the_adapter(counter: str) -> None:
    """The critic reads 100 * (steps remembered) + observation: 500 + 105 + 100 for the final step of episode 1."""
    model = PPO(
        "MemoryPolicy", limited(), n_steps=6, gamma=1.0, gae_lambda=0.0, policy_kwargs={"memory": counter}, seed=0
    )
    with torch.no_grad():
        model.policy.value_net.weight.copy_(torch.tensor([[100.0, 1.0]]))
        model.policy.value_net.bias.zero_()
    from agent_stubs import collect

    rollout = collect(model)
    episode = rollout.obs[0].item()
    assert rollout.final_values.flatten().tolist() == [0, 0, 0, 0, 600 + episode + 5, 0]
    # reward 1..5, then 1; V' - V = 101 within an episode
    assert rollout.advantages.flatten().tolist() == [102, 103, 104, 105, 106, 102]


@pytest.mark.parametrize("build", [lambda: AsyncVectorEnv([limited]), lambda: gym.make_vec("CartPole-v1", 3)])
def test_next_step_resets_are_refused_in_one_line(build: Any) -> None:
    env = build()
    with pytest.raises(ValueError, match=r"autoreset_mode.*SAME_STEP") as caught:
        A2C("MemoryPolicy", env)
    assert "\n" not in str(caught.value)
    env.close()


def test_make_env() -> None:
    ours, any_other = make_env("Engram/RepeatFirst-v0", 5, length=3), make_env("CartPole-v1", 5)
    assert type(ours) is RepeatFirst
    assert (ours.num_envs, ours.length) == (5, 3)
    assert type(any_other) is HostEnv
    assert any_other.num_envs == 5
    with pytest.raises(ValueError, match=r"unknown environment 'CartPol-v1'; near it: .*CartPole-v1"):
        make_env("CartPol-v1")
    with pytest.raises(ValueError, match=r"'Engram/RepeatFirst-v0' does not take \{'lenght': 3\}"):
        make_env("Engram/RepeatFirst-v0", 5, lenght=3)


def test_what_is_no_environment_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a Gymnasium id, Env"):
        as_tensor_env(3)  # type: ignore[arg-type]


def test_infos_that_are_no_dictionary_and_devices_that_do_not_exist_are_named() -> None:
    env = gym.make_vec("CartPole-v1", 2, "sync", {"autoreset_mode": AutoresetMode.SAME_STEP})
    with pytest.raises(ValueError, match=r"DictInfoToList gives the info of a reset as list, expected the dictionary"):
        A2C("MemoryPolicy", gym.wrappers.vector.DictInfoToList(env), n_steps=4).learn(8)
    for device in ("gpu", "", None):
        with pytest.raises(ValueError, match=f"device is {device!r}, expected cpu, cuda, cuda:1, ... or auto"):
            A2C("MemoryPolicy", "CartPole-v1", device=device)  # type: ignore[arg-type]


def test_a_tensor_env_is_taken_as_it_is() -> None:
    env = RepeatFirst(2)
    assert as_tensor_env(env) is env
    assert as_tensor_env(TensorVecEnv(env)) is env
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="put both on one device"):
            as_tensor_env(env, "meta")


@pytest.mark.parametrize("start", [1, -1])
def test_discrete_values_that_do_not_start_at_zero(start: int) -> None:
    """The networks count from 0; everybody else sees the environment's own numbers."""

    class Offset(Cut):
        action_space = gym.spaces.Discrete(2, start=start)
        observation_space = gym.spaces.Discrete(5, start=start)
        seen: set[int] = set()  # noqa: RUF012

        def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            super().reset(**kwargs)
            return start, {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.seen.add(int(action))
            _, *rest = super().step(action)
            return start + self.steps, *rest  # type: ignore[return-value]

    env = Offset(4)
    model = A2C("MemoryPolicy", env, n_steps=40, policy_kwargs=GRU, seed=0).learn(40)
    assert env.seen == {start, start + 1}
    assert model.observation_space == Offset.observation_space
    assert model.rollout.obs.flatten().tolist() == [start + step for step in (0, 1, 2, 3)] * 10
    seen = model.policy.prepare(torch.tensor([start, start + 3]))
    assert seen.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]  # type: ignore[union-attr]
    assert {int(model.predict(np.array(start))[0]) for _ in range(40)} == {start, start + 1}


def test_the_single_view_and_the_batched_one_agree() -> None:
    """`TensorEnv` behind SingleEnv, DummyVecEnv and HostEnv is the environment one started from."""
    batched: TensorEnv = RepeatFirst(1, length=4)
    around = as_tensor_env(DummyVecEnv([lambda: SingleEnv(RepeatFirst(1, length=4))]))
    one, _ = batched.reset(seed=11)
    other, _ = around.reset(seed=11)
    for t in range(20):
        assert torch.equal(one, other)  # type: ignore[arg-type]
        action = torch.tensor([t % 4])
        one, *rest, _ = batched.step(action)
        other, *others, _ = around.step(action)
        for mine, theirs in zip(rest, others, strict=True):
            assert torch.equal(mine, theirs)


def test_a_resumed_host_environment_does_not_play_its_first_episodes_again(tmp_path: Path) -> None:
    small = {"n_steps": 8, "n_minibatches": 1, "policy_kwargs": {"memory": "gru", "memory_kwargs": {"hidden_size": 4}}}
    model = PPO("MemoryPolicy", make_env("CartPole-v1", 2), seed=0, **small).learn(16)
    first = model.rollout.obs[0].clone()
    model.save(tmp_path / "saved")
    resumed = PPO.load(tmp_path / "saved", make_env("CartPole-v1", 2)).learn(16, reset_num_timesteps=False)
    assert not torch.equal(resumed.rollout.obs[0], first)
    again = PPO.load(tmp_path / "saved", make_env("CartPole-v1", 2)).learn(16, reset_num_timesteps=False)
    assert torch.equal(resumed.rollout.obs[0], again.rollout.obs[0])  # but a resumed run is the same each time
