"""SB3's own clients over an agent of this project and over sb3.PPO: the same environments, the same answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from masked_env import Ledge
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from agents import A2C, PPO, TensorVecEnv, make_env
from agents.evaluation import evaluate
from agents.sb3.callback_locals import LazyValue, Locals
from envs.single_env import SingleEnv
from envs.tensor_env import TensorEnv
from envs.tmaze import TMaze

GRU: dict[str, Any] = {"memory": "gru", "memory_kwargs": {"hidden_size": 4}}
ALGORITHMS: dict[str, Callable[..., Any]] = {
    "sb3": lambda env, **kwargs: sb3.PPO(
        "MlpPolicy", env, n_steps=20, batch_size=20, n_epochs=1, device="cpu", **kwargs
    ),
    "ours": lambda env, **kwargs: PPO(
        "MemoryPolicy", env, n_steps=20, n_epochs=1, n_minibatches=1, policy_kwargs=GRU, device="cpu", **kwargs
    ),
}


class Pay(gym.Env[Any, Any]):
    """Five steps of 100 each; the observation grows by 50 a step. Odd episodes are a success."""

    observation_space = gym.spaces.Box(-1e4, 1e4, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"
    episode = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return np.array([0.0, 1000.0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        over = self.time == 5
        info: dict[str, Any] = {"time": self.time}
        if over:
            info["is_success"] = self.episode % 2 == 1
        return np.array([50.0 * self.time, 1000.0], np.float32), 100.0, over, False, info

    def render(self) -> Any:
        return np.zeros((16, 16, 3), np.uint8)


def normalized(**kwargs: Any) -> VecNormalize:
    return VecNormalize(make_vec_env(Pay, 2), **kwargs)


class Lives(gym.Wrapper[Any, Any, Any, Any]):
    """Ends an episode at every other step, as the wrapper of Atari games does at the loss of a life."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.over = True

    def reset(self, **kwargs: Any) -> Any:
        if self.over:
            self.obs, info = self.env.reset(**kwargs)
            return self.obs, info
        return self.obs, {}

    def step(self, action: Any) -> Any:
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        self.over = terminated or truncated
        return self.obs, np.sign(reward), terminated or self.unwrapped.time % 2 == 0, truncated, info


BUILDS: dict[str, tuple[Callable[[], Any], float, int]] = {  # return and length of an episode
    "VecNormalize": (normalized, 500, 5),
    "VecNormalize around VecMonitor": (lambda: VecNormalize(VecMonitor(DummyVecEnv([Pay] * 2))), 500, 5),
    "VecMonitor around VecNormalize": (
        lambda: VecMonitor(VecNormalize(DummyVecEnv([Pay] * 2), norm_reward=False)),
        500,
        5,
    ),
    "VecFrameStack": (lambda: VecFrameStack(make_vec_env(Pay, 2), 3), 500, 5),
    "reward wrapper around Monitor": (
        lambda: make_vec_env(Pay, 2, wrapper_class=lambda env: gym.wrappers.TransformReward(env, np.sign)),
        500,
        5,
    ),
    "lives": (lambda: make_vec_env(Pay, 2, wrapper_class=Lives), 500, 5),
    "Env": (Pay, 500, 5),
    "Monitor in a reward wrapper": (lambda: gym.wrappers.TransformReward(Monitor(Pay()), np.sign), 500, 5),
}


@pytest.mark.parametrize("build", BUILDS)
def test_the_log_has_the_returns_that_sb3_logs(build: str) -> None:
    make, expected, length = BUILDS[build]
    for algorithm in ALGORITHMS.values():
        model = algorithm(make())
        model.learn(80)
        assert {(e["r"], e["l"]) for e in model.ep_info_buffer} == {(expected, length)}
        assert model.ep_success_buffer, build
        assert 0.4 <= np.mean(model.ep_success_buffer) <= 0.6


def test_the_keywords_of_a_monitor_are_kept() -> None:
    env = DummyVecEnv([lambda: Monitor(Pay(), info_keywords=("time",))])
    model = A2C("MemoryPolicy", env, policy_kwargs=GRU, device="cpu").learn(20)
    assert [(e["r"], e["time"]) for e in model.ep_info_buffer] == [(500.0, 5)] * 4


def test_without_a_monitor_returns_are_those_before_vec_normalize() -> None:
    """Where sb3 logs none."""
    model = A2C("MemoryPolicy", VecNormalize(DummyVecEnv([Pay] * 2)), policy_kwargs=GRU, device="cpu").learn(40)
    assert {(e["r"], e["l"]) for e in model.ep_info_buffer} == {(500.0, 5)}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_vec_normalize_is_found_synchronised_and_saved(name: str, tmp_path: Path) -> None:
    train, test = normalized(), normalized(training=False, norm_reward=False)
    model = ALGORITHMS[name](train)
    assert model.get_env() is train
    assert model.get_vec_normalize_env() is train
    play = EvalCallback(test, eval_freq=30, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0)
    keep = CheckpointCallback(20, str(tmp_path), save_vecnormalize=True)
    model.learn(80, callback=[play, keep])
    assert test.obs_rms.count > 60
    np.testing.assert_allclose(test.obs_rms.mean, train.obs_rms.mean, rtol=0.1)
    loaded = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_40_steps.pkl"), make_vec_env(Pay, 2))
    assert 40 <= loaded.obs_rms.count < 50
    assert evaluate_policy(model, train, 4) == (500.0, 0.0)
    assert evaluate_policy(model, test, 4) == (500.0, 0.0)
    assert play.best_mean_reward == 500.0
    assert list(tmp_path.glob("best_model*"))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_threshold_stops_the_training(name: str) -> None:
    stop = StopTrainingOnRewardThreshold(400, verbose=0)
    model = ALGORITHMS[name](make_vec_env(Pay, 2))
    model.learn(4000, callback=EvalCallback(make_vec_env(Pay, 1), eval_freq=10, callback_on_new_best=stop, verbose=0))
    assert model.num_timesteps == 20


# -- what callbacks read in `locals` -----------------------------------------------------------------------------------


class Look(BaseCallback):
    """Keeps what `locals` had after every step."""

    names = ("infos", "actions", "clipped_actions", "rewards", "dones", "new_obs", "values", "log_probs", "obs_tensor")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.seen.append({name: self.locals[name] for name in self.names})
        return True

    def _on_rollout_end(self) -> None:
        for name in ("infos", "actions", "rewards", "dones", "new_obs"):
            assert type(self.locals[name]) is type(self.seen[-1][name])


def test_locals_have_the_types_and_shapes_of_sb3s() -> None:
    looks = {name: Look() for name in ALGORITHMS}
    for name, make in ALGORITHMS.items():
        make(make_vec_env(Pay, 2)).learn(40, callback=looks[name])
    for ours, theirs in zip(looks["ours"].seen, looks["sb3"].seen, strict=True):
        for name in Look.names:
            mine, other = ours[name], theirs[name]
            assert type(mine) is type(other), name
            if name == "infos":
                assert [set(info) for info in mine] == [set(info) for info in other]
            else:
                assert mine.dtype == other.dtype, name
                assert mine.shape == other.shape, name
            if name in ("rewards", "dones", "new_obs"):
                np.testing.assert_array_equal(mine, other)


def test_callbacks_find_the_rollout_buffer_with_sb3s_names() -> None:
    class Looks(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
            assert buffer is self.locals["rollout_buffer"]
            assert buffer.observations.shape == (4, 2, 4)
            for name in ("rewards", "values", "log_probs", "advantages", "returns", "episode_starts"):
                assert getattr(buffer, name).shape == (4, 2)

    PPO("MemoryPolicy", make_env("CartPole-v1", 2), n_steps=4, device="cpu").learn(16, Looks())


@pytest.mark.parametrize("learner", [A2C, PPO])
@pytest.mark.parametrize("build", [lambda: TMaze(3, length=2), lambda: make_vec_env(Pay, 3)])
def test_locals_are_those_of_the_rollout(learner: Any, build: Any) -> None:
    look = Look()
    model = learner("MemoryPolicy", build(), n_steps=12, policy_kwargs=GRU, device="cpu", seed=0)
    _, callback = model._setup_learn(10**9, look)
    callback.on_training_start(Locals(locals()), {})
    assert model.collect_rollouts(model.env, callback, model.rollout, 12)
    rollout = model.rollout
    judged, _ = model.evaluate_actions(rollout)
    for t, seen in enumerate(look.seen):
        np.testing.assert_array_equal(seen["rewards"], rollout.rewards[t].numpy())
        np.testing.assert_array_equal(seen["actions"], rollout.actions[t].numpy())
        torch.testing.assert_close(seen["values"][:, 0], rollout.values[t])
        torch.testing.assert_close(seen["log_probs"], judged.log_prob[t].detach())
        if t < 11:
            np.testing.assert_array_equal(seen["new_obs"], rollout.obs[t + 1].numpy())
    ends = [
        (t, index, info["episode"])
        for t, seen in enumerate(look.seen)
        for index, info in enumerate(seen["infos"])
        if "episode" in info
    ]
    assert ends
    model.train()
    assert [(e["r"], e["l"]) for e in model.ep_info_buffer] == [(e["r"], e["l"]) for _, _, e in ends]


@pytest.mark.parametrize("build", [lambda: TMaze(3, length=2), lambda: make_vec_env(Pay, 3)])
def test_a_callback_that_does_not_look_costs_no_read(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind(BaseCallback):
        def _on_step(self) -> bool:
            assert "rewards" in self.locals
            return True

    def value(self: LazyValue) -> Any:
        raise AssertionError("somebody looked")

    monkeypatch.setattr(LazyValue, "value", property(value))
    model = A2C("MemoryPolicy", build(), policy_kwargs=GRU, device="cpu").learn(30, callback=[Blind(), Blind()])
    assert model.num_timesteps == 30


def test_what_nobody_looks_at_is_not_made() -> None:
    """What is on the device is brought when it is asked for, once, also by way of dict, get and update."""
    made: list[str] = []

    def later(name: str) -> LazyValue:
        return LazyValue(lambda: made.append(name) or np.zeros(2))

    known = Locals({"a": 1})
    known.update({"rewards": later("rewards"), "dones": later("dones")})
    assert "rewards" in known
    assert list(known) == ["a", "rewards", "dones"]
    assert made == []
    assert known["rewards"] is known.get("rewards")
    assert made == ["rewards"]
    assert all(type(value) is not LazyValue for value in [*dict(known).values(), *known.values()])
    assert made == ["rewards", "dones"]
    assert known.get("nothing", 3) == 3
    assert np.sum(later("x")) == 0  # a plain dictionary has the thing itself


# -- other clients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_a_feed_forward_policys_name_is_answered_with_ours(learner: Any) -> None:
    for name in ("MlpPolicy", "MlpLstmPolicy"):
        with pytest.raises(ValueError, match=f"^Policy {name} unknown: expected 'MemoryPolicy'") as caught:
            learner(name, "CartPole-v1")
        assert "\n" not in str(caught.value)


def test_sb3_contribs_evaluation_with_masks() -> None:
    from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked

    model = PPO("MemoryPolicy", Ledge(2), n_steps=8, policy_kwargs=GRU, device="cpu")
    mean, _ = evaluate_masked(model, TensorVecEnv(Ledge(3)), 6)
    assert mean > 0.2 * 6 * 0.5  # all six steps are made: no action is invalid
    assert not TensorVecEnv(TMaze(2)).has_attr("action_masks")


def test_frames_are_recorded(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    from stable_baselines3.common.vec_env import VecVideoRecorder

    model = PPO("MemoryPolicy", make_vec_env(Pay, 2), n_steps=8, policy_kwargs=GRU, device="cpu")
    shown = make_env("CartPole-v1", 1, render_mode="rgb_array")
    for number, env in enumerate((model.get_env(), TensorVecEnv(TMaze(2)), TensorVecEnv(shown))):
        recorder = VecVideoRecorder(env, str(tmp_path / str(number)), lambda step: step == 0, video_length=4)
        recorder.reset()
        for _ in range(5):
            recorder.step(np.zeros(env.num_envs, int))
        recorder.close()
        assert list((tmp_path / str(number)).glob("*.mp4"))


def test_a_window_of_the_environments_own() -> None:
    """render_mode="human": the environment draws by itself, and `render` asks it to."""
    model = PPO(
        "MemoryPolicy", gym.make("CartPole-v1", render_mode="human"), n_steps=8, policy_kwargs=GRU, device="cpu"
    )
    env = model.get_env()
    env.reset()
    env.step(np.zeros(1, int))
    env.render("human")
    assert env.envs[0].unwrapped.screen is not None
    env.close()


# -- success -----------------------------------------------------------------------------------------------------------


class Coin(TensorEnv):
    """One step; a success, and a reward of 1, in copy 0 alone."""

    def __init__(self, num_envs: int = 2) -> None:
        super().__init__(num_envs, gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2), horizon=2)

    def _begin(self, where: Any) -> None:
        pass

    def _advance(self, action: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        won = torch.arange(self.num_envs) == 0
        self._succeed(won)
        return won.float(), None, None

    def _observe(self) -> torch.Tensor:
        return torch.zeros(self.num_envs, 1)


def test_a_tensor_env_says_who_succeeded() -> None:
    model = A2C("MemoryPolicy", Coin(4), n_steps=4, policy_kwargs=GRU, device="cpu").learn(32)
    assert list(model.ep_success_buffer) == [1.0, 0.0, 0.0, 0.0] * 4
    single = SingleEnv(Coin(1))
    single.reset()
    assert ["is_success" in info for *_, info in (single.step(0), single.step(0))] == [False, True]
    assert evaluate(model, Coin(4), 8).metrics == {"success_rate": 0.25}
    _, _, _, infos = [env := TensorVecEnv(Coin(2)), env.reset(), env.step(np.zeros(2)), env.step(np.zeros(2))][-1]
    assert [info["is_success"] for info in infos] == [True, False]


def test_the_success_rate_goes_on_after_a_resume(tmp_path: Path) -> None:
    model = A2C("MemoryPolicy", Coin(4), n_steps=4, policy_kwargs=GRU, device="cpu").learn(32)
    model.save(tmp_path / "half")
    again = A2C.load(tmp_path / "half", Coin(4), device="cpu")
    assert list(again.ep_success_buffer) == list(model.ep_success_buffer)
    again.learn(16, reset_num_timesteps=False)
    assert list(again.ep_success_buffer) == [1.0, 0.0, 0.0, 0.0] * 6


def test_evaluate_reads_success_and_true_returns_of_host_environments() -> None:
    model = A2C("MemoryPolicy", normalized(), policy_kwargs=GRU, device="cpu").learn(40)
    score = evaluate(model, model.tensor_env, 8)
    assert (score.mean, score.mean_length, score.episodes) == (500.0, 5.0, 8)
    assert score.metrics == {"success_rate": 0.5}
    model.learn(10, reset_num_timesteps=False)  # goes on from what the evaluation left
    assert model.rollout.starts[0].all()
    env = make_env("CartPole-v1", 2)
    assert evaluate(A2C("MemoryPolicy", env, policy_kwargs=GRU, device="cpu"), env, 2).metrics == {}
