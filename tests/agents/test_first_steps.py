"""The first things that somebody tries: no device named, a run's folder loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.utils import get_device

import agents
from agents import PPO, Supervised, make_env
from agents.environments import TensorVecEnv
from envs.repeat_first import RepeatFirst

SMALL: dict[str, Any] = {"n_steps": 8, "policy_kwargs": {"memory": "gru", "memory_kwargs": {"hidden_size": 4}}}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3's "auto" is CUDA from here on."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert get_device("auto").type == "cuda"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("learner", [PPO, Supervised])
def test_no_device_means_that_of_the_environment(learner: Any, tmp_path: Path) -> None:
    """The example in README names none, and `make_env` builds on the CPU."""
    envs = [make_env("Engram/RepeatFirst-v0", num_envs=2), TensorVecEnv(RepeatFirst(2))]
    for env in [make_env("CartPole-v1"), *envs] if learner is PPO else envs:
        model = learner("MemoryPolicy", env, **SMALL)
        assert model.device == torch.device("cpu")
        model.learn(16)
    model.save(tmp_path / "saved")
    assert agents.load(tmp_path / "saved", env).device == torch.device("cpu")
    assert PPO("MemoryPolicy", RepeatFirst(2), device="cpu", **SMALL).device.type == "cpu"


@pytest.mark.usefixtures("gpu")
def test_a_device_that_is_named_is_meant() -> None:
    with pytest.raises(ValueError, match="the environment lives on cpu but the agent on cuda"):
        PPO("MemoryPolicy", RepeatFirst(2), device="cuda", **SMALL)


def test_a_runs_folder_is_loaded_by_its_newest_checkpoint(tmp_path: Path) -> None:
    model = PPO("MemoryPolicy", RepeatFirst(2), seed=0, **SMALL)
    for step in (16, 32):
        model.learn(16, reset_num_timesteps=False)
        model.save(tmp_path / "checkpoints" / f"step_{step:012}")
    for found in (agents.load(tmp_path), PPO.load(tmp_path, RepeatFirst(2)), agents.load(str(tmp_path))):
        assert found.num_timesteps == 32
    assert agents.load(tmp_path / "checkpoints" / "step_000000000016").num_timesteps == 16
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(agents.CheckpointError, match="no checkpoint in"):
        agents.load(tmp_path / "empty")
