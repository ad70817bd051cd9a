"""Every call of an SB3 `VecEnv` on `model.get_env()` gives what it gives over `DummyVecEnv`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from agents import A2C, PPO, TensorVecEnv, as_tensor_env, make_env
from envs.repeat_first import RepeatFirst
from envs.tmaze import TMaze

GRU: dict[str, Any] = {"memory": "gru", "memory_kwargs": {"hidden_size": 4}}
same = AutoresetMode.SAME_STEP


class Stairs(gym.Env[Any, Any]):
    """Action 1 climbs a stair, 0 stays; the fourth is the top and a success. Seeds choose the first stair."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, step_reward: float = 10.0, render_mode: str | None = "rgb_array") -> None:
        self.step_reward, self.render_mode = step_reward, render_mode

    def _seen(self) -> Any:
        return np.array([self.stair, self.time], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.stair = (options or {}).get("stair", int(self.np_random.integers(3)))
        self.time = 0
        return self._seen(), {"first": self.stair}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.stair, self.time = self.stair + int(action), self.time + 1
        top = self.stair >= 4
        info = {"height": self.stair / 2, "nested": {"time": self.time}}
        if top or self.time == 7:
            info["is_success"] = top
        return self._seen(), self.step_reward * int(action), top, False, info

    def render(self) -> Any:
        return np.full((4, 6, 3), 10 * self.stair, np.uint8)

    def plus(self, number: float, times: int = 1) -> float:
        return self.step_reward + times * number


def stairs() -> gym.Env[Any, Any]:
    return Monitor(gym.wrappers.TimeLimit(Stairs(), 7))


WAYS: dict[str, Callable[[], Any]] = {
    "DummyVecEnv": lambda: DummyVecEnv([stairs] * 3),
    "SyncVectorEnv": lambda: SyncVectorEnv([stairs] * 3, autoreset_mode=same),
    "HostEnv": lambda: as_tensor_env(SyncVectorEnv([stairs] * 3, autoreset_mode=same)),
}


def played(env: VecEnv, steps: int = 16) -> list[Any]:
    """Everything that a fixed sequence of actions brings."""
    shown: list[Any] = [env.reset()]
    for t in range(steps):
        env.step_async(np.array([t % 2, 1, t % 5 == 0]).astype(int))
        shown.append(env.step_wait())
    return shown


CALLS: dict[str, Callable[[VecEnv], Any]] = {
    "seed": lambda env: (list(env.seed(5)), env.reset()),
    "play": lambda env: (env.seed(3), played(env))[1],
    "reset_infos": lambda env: (env.seed(3), env.reset(), env.reset_infos)[2],
    "reset_infos after an end": lambda env: (env.seed(3), played(env), env.reset())[2],
    "options": lambda env: (env.set_options({"stair": 2}), env.reset(), env.seed(1), env.reset())[1::2],
    "get_attr": lambda env: env.get_attr("step_reward"),
    "get_attr of some": lambda env: env.get_attr("step_reward", [0, 2]),
    "get_attr of one": lambda env: env.get_attr("step_reward", 1),
    "get_attr, unknown": lambda env: env.get_attr("nothing"),
    "has_attr": lambda env: (env.has_attr("step_reward"), env.has_attr("nothing")),
    "set_attr": lambda env: (env.set_attr("step_reward", 2.0), env.get_attr("step_reward"))[1],
    "set_attr of some": lambda env: (env.set_attr("step_reward", 3.0, [1]), env.get_attr("step_reward"))[1],
    "env_method": lambda env: env.env_method("plus", 1.0, times=2),
    "env_method of some": lambda env: env.env_method("plus", 1.0, indices=[2, 0]),
    "env_method of one": lambda env: env.env_method("plus", 1.0, indices=1),
    "env_method, unknown": lambda env: env.env_method("nothing"),
    "env_is_wrapped": lambda env: [env.env_is_wrapped(kind) for kind in (Monitor, gym.wrappers.TimeLimit, VecMonitor)],
    "env_is_wrapped of some": lambda env: env.env_is_wrapped(gym.wrappers.TimeLimit, [1]),
    "render": lambda env: (env.seed(3), env.reset(), env.render("rgb_array"))[2],
    "render by default": lambda env: (env.seed(3), env.reset(), env.render())[2],
    "get_images": lambda env: (env.seed(3), env.reset(), list(env.get_images()))[2],
    "render_mode": lambda env: (env.render_mode, env.num_envs, env.observation_space, env.action_space),
    "VecMonitor": lambda env: (env.seed(3), played(VecMonitor(env)))[1],
    "VecNormalize": lambda env: (env.seed(3), played(VecNormalize(env)))[1],
    "VecFrameStack": lambda env: (env.seed(3), played(VecFrameStack(env, 2)))[1],
}


def outcome(call: Callable[[VecEnv], Any], env: VecEnv) -> Any:
    try:
        return call(env)
    except Exception as error:
        return type(error)


def assert_same(ours: Any, theirs: Any, place: str = "") -> None:
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), place
        for key in theirs:
            if key != "t":  # of Monitor: a time
                assert_same(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), place
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, other, f"{place}[{index}]")
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype, place
        np.testing.assert_array_equal(ours, theirs, place)
    else:
        assert ours == theirs, place


@pytest.fixture(scope="module", params=WAYS)
def ours(request: pytest.FixtureRequest) -> VecEnv:
    model = PPO("MemoryPolicy", WAYS[request.param](), n_steps=8, n_epochs=1, policy_kwargs=GRU, seed=0, device="cpu")
    model.learn(24)
    env = model.get_env()
    assert env is not None
    return env


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
@pytest.mark.parametrize("name", CALLS)
def test_every_call_gives_what_it_gives_over_dummy_vec_env(ours: VecEnv, name: str) -> None:
    theirs = DummyVecEnv([stairs] * 3)
    for env in (ours, theirs):
        env.set_attr("step_reward", 10.0)
    assert_same(outcome(CALLS[name], ours), outcome(CALLS[name], theirs))


# -- the user's own VecEnv ---------------------------------------------------------------------------------------------


def test_the_users_vec_env_is_handed_back() -> None:
    env = VecNormalize(DummyVecEnv([stairs] * 2))
    model = A2C("MemoryPolicy", env, policy_kwargs=GRU, device="cpu")
    assert model.get_env() is env
    assert model.get_vec_normalize_env() is env
    other = VecNormalize(VecMonitor(DummyVecEnv([stairs] * 3)))
    model.set_env(other)
    assert model.get_env() is other
    assert model.get_vec_normalize_env() is other
    assert TensorVecEnv(as_tensor_env(other)) is other


@pytest.mark.parametrize("batch", [DummyVecEnv, lambda made: SyncVectorEnv(made, autoreset_mode=same)])
def test_attributes_of_the_single_environments_stay_in_reach(batch: Any) -> None:
    """Whoever built the batch goes on using `envs[0].name`, although its environments were wrapped."""

    class Level(gym.Wrapper[Any, Any, Any, Any]):
        level, _own = 3, 4

        def hello(self) -> str:
            return f"level {self.level}"

    env = batch([lambda: Level(Stairs())] * 2)
    PPO("MemoryPolicy", env, n_steps=8, policy_kwargs=GRU, device="cpu")
    single: Any = env.envs[0]
    assert (single.level, single._own, single.hello()) == (3, 4, "level 3")
    single.level = 5
    assert single.hello() == "level 5"
    assert env.envs[1].hello() == "level 3"
    assert copy.deepcopy(single).level == 5
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = single.nothing_such


def test_a_seed_may_be_a_number_of_numpy() -> None:
    """Gymnasium's batch takes it for a sequence of seeds."""
    env = PPO("MemoryPolicy", Stairs(), n_steps=8, policy_kwargs=GRU, device="cpu").get_env()
    assert env is not None
    shown = []
    for seed in (np.int64(5), 5):
        env.seed(seed)  # type: ignore[arg-type]
        shown.append(env.reset())
    np.testing.assert_array_equal(*shown)


def test_pictures_are_transposed_as_in_sb3() -> None:
    class Picture(Stairs):
        observation_space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)

        def _seen(self) -> Any:
            return np.full((36, 36, 3), self.stair, np.uint8)

    def short() -> gym.Env[Any, Any]:  # a policy that was not trained may stay below for ever
        return gym.wrappers.TimeLimit(Picture(), 7)

    env = DummyVecEnv([short])
    model = A2C("MemoryPolicy", env, policy_kwargs=GRU, device="cpu")
    wrapped = model.get_env()
    assert isinstance(wrapped, VecTransposeImage)
    assert wrapped.venv is env
    other = DummyVecEnv([short])
    wrapped.seed(0), other.seed(0)
    assert evaluate_policy(model, wrapped, 3) == evaluate_policy(model, other, 3)


def test_a_watched_environment_is_pickled_and_copied_as_what_it_was() -> None:
    env = VecNormalize(DummyVecEnv([stairs] * 2))
    PPO("MemoryPolicy", env, n_steps=8, n_epochs=1, policy_kwargs=GRU, device="cpu").learn(16)
    loaded = pickle.loads(pickle.dumps(env))
    assert type(loaded) is VecNormalize
    assert "_watches" not in vars(loaded)
    assert loaded.obs_rms.count == env.obs_rms.count
    plain = DummyVecEnv([stairs] * 2)
    model = PPO("MemoryPolicy", plain, n_steps=8, n_epochs=1, policy_kwargs=GRU, device="cpu")
    twin = copy.deepcopy(model).learn(16)
    own = twin.get_env()
    assert own is not plain
    assert own is not None
    shown = own.reset()
    twin.learn(16, reset_num_timesteps=False)
    np.testing.assert_array_equal(twin.rollout.obs[0].numpy(), shown)


# -- a TensorEnv is a batch --------------------------------------------------------------------------------------------


def test_calls_on_a_tensor_env_reach_the_batch_or_are_refused() -> None:
    env = TensorVecEnv(TMaze(3, length=4))
    env.seed(0)
    env.reset()
    assert env.get_attr("length") == [4, 4, 4]
    places = [int(place) for place in env.get_attr("place")]
    env.set_attr("place", places[1] + 1, [1])
    assert [int(place) for place in env.get_attr("place", [0, 1])] == [places[0], places[1] + 1]
    np.testing.assert_array_equal(env.env_method("observe"), env.tensor_env.observe().numpy())
    env.set_attr("length", 5)
    assert env.tensor_env.length == 5
    for call in (
        lambda: env.set_attr("length", 6, [1]),
        lambda: env.env_method("text", indices=[1]),
        lambda: env.env_method("step", np.zeros(3)),
    ):
        with pytest.raises(ValueError, match=r"TMaze moves its 3 environments together|go past") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert env.tensor_env.length == 5
    first = env.env_method("reset", seed=3)
    assert [len(entry) for entry in first] == [2, 2, 2]
    with pytest.raises(AttributeError):
        env.get_attr("nothing")
    env.set_options([{"a": 1}, {}, {}])
    with pytest.raises(ValueError, match="one dictionary"):
        env.reset()


def test_asynchronous_environments_refuse_what_they_cannot_do() -> None:
    model = A2C("MemoryPolicy", AsyncVectorEnv([stairs] * 2, autoreset_mode=same), policy_kwargs=GRU, device="cpu")
    env = model.get_env()
    assert env is not None
    env.set_attr("step_reward", 4.0)
    assert env.get_attr("step_reward", 1) == [4.0]
    assert env.env_method("plus", 1.0) == [5.0, 5.0]
    with pytest.raises(ValueError, match="leave out indices"):
        env.set_attr("step_reward", 5.0, [0])
    with pytest.raises(ValueError, match="cannot say whether"):
        env.env_is_wrapped(gym.wrappers.TimeLimit)
    assert env.get_attr("step_reward") == [4.0, 4.0]
    env.close()


@pytest.mark.parametrize("build", [lambda: RepeatFirst(2), lambda: make_env("CartPole-v1", 2)])
def test_what_sb3_cannot_take_says_how_it_can(build: Any) -> None:
    model = A2C("MemoryPolicy", build(), policy_kwargs=GRU, device="cpu")
    with pytest.raises(TypeError, match=r"takes as agents\.TensorVecEnv\(env\)"):
        VecNormalize(build())
    with pytest.raises(ValueError, match=r"takes as agents\.TensorVecEnv\(env\)"):
        evaluate_policy(model, build())
    mean, _ = evaluate_policy(model, TensorVecEnv(build()), 2)
    assert mean >= 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        build().nothing  # noqa: B018


@pytest.mark.parametrize("build", [lambda: "CartPole-v1", lambda: "Engram/TMaze-v0", lambda: gym.make("CartPole-v1")])
def test_the_loop_of_sb3s_readme(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pygame

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    model = PPO("MemoryPolicy", build(), n_steps=8, policy_kwargs=GRU, device="cpu", seed=0)
    env = model.get_env()
    assert env is not None
    obs = env.reset()
    for _ in range(3):
        action, _ = model.predict(obs, deterministic=True)
        obs, *_ = env.step(action)
        if env.render_mode == "rgb_array":
            env.render("human")
            assert pygame.surfarray.array3d(pygame.display.get_surface()).max() > 0
    assert (env.render_mode is None) == isinstance(build(), gym.Env)
