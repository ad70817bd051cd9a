"""What is counted, stored and shown when rollouts are interrupted, or environments and arguments are unusual."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clocks import Clock, TensorClock
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import A2C, PPO, Supervised, load, make_env
from agents.checkpoint import load_weights
from agents.evaluation import evaluate
from agents.run.callbacks import WallClock
from envs.repeat_first import RepeatFirst
from envs.tensor_env import Info, TensorEnv

GRU: dict[str, Any] = {"policy_kwargs": {"memory": "gru", "memory_kwargs": {"hidden_size": 4}}, "seed": 0}
ONE_UPDATE = {"n_epochs": 1, "n_minibatches": 1}


class MeasuredClock(TensorClock):
    """Its metric has a count of one per step."""

    metric_names = ("clock",)

    def _advance(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        result = super()._advance(action)
        self._measure(clock=(self.time, torch.ones(self.num_envs)))
        return result


class StopAt(BaseCallback):
    def __init__(self, calls: int) -> None:
        super().__init__()
        self.last = calls

    def _on_step(self) -> bool:
        return self.n_calls != self.last


@pytest.mark.parametrize("learner", [PPO, A2C])
def test_episodes_go_on_after_a_callback_has_stopped(learner: type[PPO | A2C]) -> None:
    model = learner("MemoryPolicy", MeasuredClock(2), n_steps=10, **GRU).learn(1000, StopAt(15))
    assert model.episodes.lengths.tolist() == [3, 3]
    model.learn(40, reset_num_timesteps=False)
    assert model.ep_info_buffer is not None
    assert {(episode["r"], episode["l"]) for episode in model.ep_info_buffer} == {(6.0, 6)}
    assert model.scores.tolist()[1] == 20  # of the last rollout alone


class PaidClock(Clock):
    """Every step of an evaluation is worth 101."""

    bonus = 0.0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, *rest = super().step(action)
        return obs, reward + PaidClock.bonus, *rest  # type: ignore[return-value]


class ResetAt(BaseCallback):
    def _on_step(self) -> bool:
        if self.n_calls == 13:
            self.training_env.reset()
        return True


@pytest.mark.parametrize("wrap", [Monitor, lambda env: env])
def test_a_reset_by_a_callback_loses_no_episode(wrap: Any) -> None:
    env = DummyVecEnv([lambda: wrap(Clock())] * 2)
    model = PPO("MemoryPolicy", env, n_steps=20, **ONE_UPDATE, **GRU).learn(40, ResetAt())
    assert model._episode_num == 6  # two before the reset and one after it, in each environment


class EvaluateInTraining(BaseCallback):
    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        PaidClock.bonus = 100.0
        assert isinstance(self.model, PPO)
        assert self.model.tensor_env is not None
        evaluate(self.model, self.model.tensor_env, 4)
        PaidClock.bonus = 0.0


def test_an_evaluation_in_the_training_environments_is_no_training() -> None:
    env = DummyVecEnv([lambda: Monitor(PaidClock())] * 2)
    model = PPO("MemoryPolicy", env, n_steps=20, **ONE_UPDATE, **GRU).learn(120, EvaluateInTraining())
    assert model.ep_info_buffer is not None
    returns = [episode["r"] for episode in model.ep_info_buffer]
    assert returns.count(6.0) == 18  # three in each of three rollouts and two environments
    assert max(returns) < 600  # of an episode that an evaluation began, its later steps are training


@pytest.mark.parametrize("learner", [PPO, Supervised])
def test_the_same_environments_go_on_where_they_were(learner: type[PPO | Supervised]) -> None:
    options = {"target_coef": 1.0} if learner is PPO else {}
    model = learner("MemoryPolicy", RepeatFirst(3, length=11), n_steps=4, **options, **GRU).learn(24)
    env = model.tensor_env
    assert env is not None
    model.set_env(env, force_reset=False)
    assert torch.equal(model.rollout_state.obs, env.observe())  # type: ignore[arg-type]
    model.learn(48, reset_num_timesteps=False)
    assert model.ep_info_buffer is not None
    assert {episode["l"] for episode in model.ep_info_buffer} == {11}


class LateMasks(Clock):
    """After a reset everything is valid, and no mask is given; later only action 0 is."""

    action_space = spaces.Discrete(4)
    invalid = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        LateMasks.invalid += self.time > 0 and action != 0
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"action_mask": np.array([1, 0, 0, 0], np.int8)}


def test_masks_that_begin_with_a_step_are_obeyed() -> None:
    LateMasks.invalid = 0
    model = PPO("MemoryPolicy", DummyVecEnv([LateMasks] * 2), n_steps=18, **ONE_UPDATE, **GRU).learn(72)
    assert LateMasks.invalid == 0
    assert model.rollout.masks is not None
    assert model.rollout.masks[0].all()  # the first observation's
    assert not model.rollout.masks[1].all()


class FromFive(TensorEnv):
    """The right action is shown; actions are 5, 6 and 7."""

    state_names = ("goal",)

    def __init__(self, num_envs: int = 2, *, device: Any = "cpu", render_mode: str | None = None) -> None:
        super().__init__(num_envs, spaces.Box(0, 2, (1,)), spaces.Discrete(3, start=5), device, 4)

    def _begin(self, where: torch.Tensor | None) -> None:
        self.goal = torch.randint(3, (self.num_envs,), generator=self.generator) + 5

    def _advance(self, action: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return (action == self.goal).float(), None, None

    def _observe(self) -> torch.Tensor:
        return self.goal[:, None] - 5.0

    def _describe(self) -> Info:
        return {"target": self.goal, "weight": torch.ones(self.num_envs)}


def test_targets_of_actions_that_do_not_start_at_0_are_loaded(tmp_path: Path) -> None:
    Supervised("MemoryPolicy", FromFive(), n_steps=4, **GRU).learn(16).save(tmp_path / "run")
    assert load(tmp_path / "run", FromFive()).num_timesteps == 16


def test_the_running_state_is_laid_out_as_in_a_checkpoint(tmp_path: Path) -> None:
    """Kernels for other strides round differently: at these sizes the DNC's states were views."""

    def model() -> PPO:
        env = make_env("Engram/TMaze-v0", 4)
        return PPO("MemoryPolicy", env, n_steps=16, policy_kwargs={"memory": "dnc"}, seed=0)

    straight = model().learn(128)
    first = model().learn(64)
    first.save(tmp_path / "half")
    resumed = load(tmp_path / "half", make_env("Engram/TMaze-v0", 4)).learn(64, reset_num_timesteps=False)
    for one, other in zip(straight.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_loaded_critic_keeps_its_values_when_statistics_begin(tmp_path: Path) -> None:
    def model(normalize_values: bool) -> PPO:
        return PPO("MemoryPolicy", RepeatFirst(4, length=8), normalize_values=normalize_values, n_steps=8, **GRU)

    plain, normalized = model(False), model(True)
    with torch.no_grad():
        plain.policy.value_net.bias.fill_(50.0)
    plain.learn(32).save(tmp_path / "plain")
    load_weights(normalized.policy, tmp_path / "plain")
    norm = normalized.policy.value_norm
    assert norm is not None
    latents = torch.randn(5, 4)
    before = normalized.policy.value(latents)
    norm.update(torch.tensor(52.0), torch.tensor(25.0), 1000, normalized.policy.value_net)
    assert float(norm.mean) == pytest.approx(52.0)
    torch.testing.assert_close(normalized.policy.value(latents), before)


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_explained_variance_does_not_depend_on_the_scale(scale: float) -> None:
    model = PPO("MemoryPolicy", RepeatFirst(4, length=8), n_steps=8, **GRU).learn(32)
    rollout = model.rollout
    rollout.returns = scale * torch.randn(8, 4)
    rollout.values = torch.full((8, 4), 3 * scale)
    assert float(model.diagnostics(rollout)["train/explained_variance"]) == pytest.approx(0.0, abs=1e-3)


def test_a2c_takes_the_arguments_of_its_optimizer() -> None:
    policy = {**GRU["policy_kwargs"], "optimizer_kwargs": {"weight_decay": 0.1}}
    model = A2C("MemoryPolicy", RepeatFirst(2), policy_kwargs=policy)
    group = model.policy.optimizer.param_groups[0]
    assert (group["weight_decay"], group["alpha"]) == (0.1, 0.99)


def test_wall_time_includes_the_update(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr("agents.run.callbacks.time.perf_counter", lambda: now[0])
    model = PPO("MemoryPolicy", RepeatFirst(2, length=4), n_steps=4, **GRU)
    monkeypatch.setattr(model, "train", lambda: now.__setitem__(0, now[0] + 100))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(16, WallClock(before=7.0))
    with open(tmp_path / "progress.csv") as file:
        assert [float(row["time/wall"]) for row in csv.DictReader(file)] == [107.0, 207.0]


class Quitting(Clock):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        sys.exit()


def test_an_environment_cannot_end_the_program() -> None:
    model = PPO("MemoryPolicy", DummyVecEnv([Quitting] * 2), n_steps=20, **ONE_UPDATE, **GRU)
    with pytest.raises(ValueError, match=r"the environment called sys.exit\(\)"):
        model.learn(40)


def test_the_current_folder_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PPO("MemoryPolicy", RepeatFirst(2, length=4), n_steps=4, **GRU).save(tmp_path / "checkpoints" / "step_000000000008")
    monkeypatch.chdir(tmp_path)
    assert load(".", RepeatFirst(2, length=4)).num_timesteps == 0
    monkeypatch.chdir(tmp_path / "checkpoints" / "step_000000000008")
    assert load(".", RepeatFirst(2, length=4)).num_timesteps == 0
