"""What single environments may legally give, and a batch of them must keep: infos, texts, constructors, seeds."""

from __future__ import annotations

import copy
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from agents import PPO, as_tensor_env, make_env
from agents.environments import HostEnv
from agents.environments.infos import infos_of_obs
from agents.environments.make import Vector
from agents.evaluation import evaluate
from agents.sb3 import vec_env
from agents.sb3.vec_env import TensorVecEnv

GRU: dict[str, Any] = {"memory": "gru", "memory_kwargs": {"hidden_size": 4}}
VECTORS: tuple[Vector, ...] = ("sync", "async")
SMALL: dict[str, Any] = {"policy_kwargs": GRU, "n_steps": 8, "n_epochs": 1}


class Odd(gym.Env[Any, Any]):
    """Episodes of three steps; its `info` is what the number-th of its makers gives. It takes no `render_mode`."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)
    made = 0
    given: tuple[dict[Any, Any], ...] = ({},)

    def __init__(self) -> None:
        self.number = Odd.made
        Odd.made += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        info = self.given[self.number % len(self.given)]
        return np.zeros(1, np.float32), 1.0, self.steps == 3, False, copy.deepcopy(info)


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> type[Odd]:
    monkeypatch.setitem(gym.registry, "Odd-v0", EnvSpec("Odd-v0", cast(Any, Odd)))
    monkeypatch.setattr(Odd, "made", 0)
    monkeypatch.setattr(Odd, "given", ({},))
    return Odd


@pytest.mark.parametrize(
    "given",
    [
        ({"distance": 1}, {"distance": 0.5}),
        ({"path": np.zeros(2)}, {"path": np.ones(3)}),
        ({"found": 1}, {"found": None}),
        ({"found": 1}, {"found": "x"}),
        ({"found": 1}, {"found": {"a": 1}}),
        ({"found": 2**70}, {}),
        ({0: 1, (0, 1): 2}, {0: 3}),
        ({"episode": 7}, {"episode": {"id": 3}}),
    ],
)
def test_each_environment_keeps_its_own_info(odd: type[Odd], given: tuple[dict[Any, Any], ...]) -> None:
    odd.given = given
    env = make_env("Odd-v0", 2)
    assert isinstance(env, HostEnv)
    env.reset()
    for _ in range(3):  # the last step ends the episodes
        infos = env.step(np.zeros(2, np.int64))[4]["infos"]()
        for info, wanted in zip(infos, given, strict=True):
            assert {*wanted} <= {*info}
            assert all(type(info[name]) is type(value) for name, value in wanted.items())
            assert all(np.array_equal(info[name], value) for name, value in wanted.items())
    odd.made = 0
    PPO("MemoryPolicy", make_env("Odd-v0", 2), **SMALL).learn(32)


def test_episodes_are_counted_although_an_environment_has_an_entry_of_that_name(odd: type[Odd]) -> None:
    odd.given = ({"episode": 7},)
    model = PPO("MemoryPolicy", make_env("Odd-v0", 2), **SMALL).learn(32)
    assert [episode["r"] for episode in model.ep_info_buffer or ()] == [3.0] * 10


def test_a_success_may_be_an_array_of_one_and_is_named_if_it_is_no_number(odd: type[Odd]) -> None:
    odd.given = ({"is_success": np.array([True])},)
    assert (
        evaluate(PPO("MemoryPolicy", make_env("Odd-v0", 2), **SMALL), make_env("Odd-v0", 2), 4).metrics["success_rate"]
        == 1
    )
    odd.given = ({"is_success": "yes"},)
    with pytest.raises(Exception, match=r"step returned 'yes' as info\['is_success'\], expected a number"):
        PPO("MemoryPolicy", make_env("Odd-v0", 2), **SMALL).learn(32)


def test_an_id_needs_no_render_mode(odd: type[Odd]) -> None:
    PPO("MemoryPolicy", "Odd-v0", **SMALL).learn(8)


def test_numpy_seeds() -> None:
    env: Any = make_env("CartPole-v1", 2)
    assert env.reset(seed=np.int64(3))[0].equal(env.reset(seed=3)[0])


class Words(gym.Env[Any, Any]):
    """Shows another word at each step."""

    observation_space = spaces.Dict({"word": spaces.Text(5), "x": spaces.Box(-1, 1, (1,))})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._obs(), 0.0, self.steps == 3, False, {}

    def _obs(self) -> dict[str, Any]:
        return {"word": "abcd"[: self.steps + 1], "x": np.zeros(1, np.float32)}


def test_processes_show_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.registry, "Words-v0", EnvSpec("Words-v0", cast(Any, Words)))
    one, other = (make_env("Words-v0", 2, vector=vector) for vector in VECTORS)
    one.reset(seed=0)
    other.reset(seed=0)
    for word in ("ab", "abc", "a", "ab"):
        shown = [env.step(np.zeros(2, np.int64))[4]["shown"]["word"] for env in (one, other)]
        assert shown == [(word, word)] * 2
    other.close()
    shared = AsyncVectorEnv([Words, Words], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="the same texts at every step: build it with shared_memory=False"):
        as_tensor_env(shared)
    shared.close()


def test_the_end_of_many_episodes_reads_the_infos_once(monkeypatch: pytest.MonkeyPatch) -> None:
    env = TensorVecEnv(make_env("Engram/RepeatFirst-v0", 64))
    calls = []

    def counted(*args: Any) -> Any:
        calls.append(args)
        return infos_of_obs(*args)

    monkeypatch.setattr(vec_env, "infos_of_obs", counted)
    env.reset()
    steps = 1
    while not env.step(np.zeros(64, np.int64))[2].all():
        steps += 1
    assert len(calls) == 2  # at the reset and at the end
    assert steps > 2
