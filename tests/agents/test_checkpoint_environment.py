"""A state goes only into an environment that it was taken from; anything else begins new episodes and says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import agents
from agents import PPO, CheckpointError, MemoryOnPolicyAlgorithm, Supervised, make_env
from agents.checkpoint import MANIFEST, NewEpisodesWarning, read_manifest, read_tensors, write_checkpoint
from agents.checkpoint.environment import describe, difference
from envs.maze import InvisibleGoalMaze
from envs.repeat_first import RepeatFirst
from envs.tensor_env import TensorEnv
from envs.tmaze import TMaze


class Corridor(TensorEnv):
    """Somebody else's: walk `length` steps east. Its one argument is not among its attributes."""

    state_names = ("place",)

    def __init__(self, num_envs: int = 1, length: int = 3, prices: Any = None, device: str = "cpu") -> None:
        super().__init__(num_envs, spaces.Box(-1e3, 1e3, (1,)), spaces.Discrete(2), device)
        self._goal = torch.full((num_envs,), length)

    def _begin(self, where: Tensor | None) -> None:
        start = torch.zeros(self.num_envs, dtype=torch.int64)
        self.place = start if where is None else torch.where(where, start, self.place)

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, None]:
        self.place = self.place + action
        return action.float(), self.place >= self._goal, None

    def _observe(self) -> Tensor:
        return self.place[:, None].float()


def agent(env: TensorEnv, n_steps: int = 5) -> PPO:
    kwargs = {"memory": "gru", "memory_kwargs": {"hidden_size": 6}}
    return PPO("MemoryPolicy", env, n_steps=n_steps, n_epochs=1, policy_kwargs=kwargs, seed=3, device="cpu")


OTHERS: dict[str, tuple[Callable[[], TensorEnv], Callable[[], TensorEnv], str]] = {
    "longer episodes": (lambda: RepeatFirst(4, length=3), lambda: RepeatFirst(4, length=8), "length=3 length=8"),
    "shorter episodes": (lambda: RepeatFirst(4, length=8), lambda: RepeatFirst(4, length=3), "length=8 length=3"),
    "a larger maze": (
        lambda: InvisibleGoalMaze(4, episode_length=12),
        lambda: InvisibleGoalMaze(4, size=15, episode_length=12),
        "size=9 size=15",
    ),
    "a smaller maze": (
        lambda: InvisibleGoalMaze(4, size=11, episode_length=12),
        lambda: InvisibleGoalMaze(4, size=9, episode_length=12),
        "size=11 size=9",
    ),
    "other rules": (
        lambda: InvisibleGoalMaze(4, episode_length=12),
        lambda: InvisibleGoalMaze(4, episode_length=12, goal_at_centre=False),
        "goal_at_centre=True goal_at_centre=False",
    ),
    "a shorter corridor": (lambda: TMaze(4, length=10), lambda: TMaze(4, length=3), "length=10 length=3"),
    "somebody else's": (lambda: Corridor(4, 9), lambda: Corridor(4, 2), "length=9 length=2"),
    "other tensors": (
        lambda: Corridor(4, prices=torch.ones(3)),
        lambda: Corridor(4, prices=torch.zeros(3)),
        "prices= float32",
    ),
    "a number of copies": (lambda: Corridor(4), lambda: Corridor(8), "num_envs=4 num_envs=8"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_environment_begins_new_episodes_and_says_what_differs(name: str, tmp_path: Path) -> None:
    before, after, differs = OTHERS[name]
    agent(before()).learn(60).save(tmp_path / "it")
    with pytest.warns(NewEpisodesWarning) as warned:
        model = PPO.load(tmp_path / "it", after(), device="cpu")
    assert str(warned[0].message) == f"new episodes: {model.new_episodes}"
    assert "\n" not in model.new_episodes
    for words in differs.split():
        assert words in model.new_episodes
    assert model._last_obs is None
    check_that_it_trains(model)


@pytest.mark.parametrize("name", OTHERS)
def test_set_env_begins_new_episodes_and_says_what_differs(name: str) -> None:
    before, after, differs = OTHERS[name]
    model = agent(before()).learn(60)
    model.set_env(after(), force_reset=False)
    for words in differs.split():
        assert words in model.new_episodes
    check_that_it_trains(model)


def check_that_it_trains(model: MemoryOnPolicyAlgorithm) -> None:
    ended = model._episode_num
    horizon = model.tensor_env.horizon
    model.learn(model.n_envs * 30, reset_num_timesteps=False)
    if horizon is not None:
        steps = model.n_steps * -(-30 // model.n_steps)
        assert model._episode_num == ended + model.n_envs * (steps // horizon)


def test_set_env_with_an_equal_one_has_nothing_to_say() -> None:
    model = agent(Corridor(4, 5)).learn(20)
    model.set_env(Corridor(4, length=5))
    assert model.new_episodes == ""
    model.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize(
    "same",
    [lambda: TMaze(4, length=10), lambda: TMaze(4), lambda: TMaze(num_envs=4, length=10, device="cpu")],
)
def test_arguments_spelled_otherwise_are_the_same(same: Callable[[], TensorEnv], tmp_path: Path) -> None:
    agent(TMaze(4)).learn(20).save(tmp_path / "it")
    model = PPO.load(tmp_path / "it", same(), device="cpu")
    assert model.new_episodes == ""
    assert model._last_obs is not None


def test_whole_episodes_follow_a_curriculum(tmp_path: Path) -> None:
    """n_steps=0 is an episode, however long: also after a load and a set_env."""
    kwargs = {"memory": "gru", "memory_kwargs": {"hidden_size": 6}}
    model = Supervised("MemoryPolicy", RepeatFirst(4, length=3), policy_kwargs=kwargs, seed=3, device="cpu")
    model.learn(24).save(tmp_path / "it")
    with pytest.warns(NewEpisodesWarning, match="length=3"):
        loaded = Supervised.load(tmp_path / "it", RepeatFirst(4, length=8), device="cpu")
    model.set_env(RepeatFirst(4, length=8))
    for each in (loaded, model):
        assert each.n_steps == 8
        check_that_it_trains(each)
    model.set_env(RepeatFirst(4, length=2))
    assert model.n_steps == 2


def test_a_state_of_other_shapes_is_never_poured_in(tmp_path: Path) -> None:
    """Where the manifest says that it is the same environment, the file is wrong."""
    agent(Corridor(4)).learn(20).save(tmp_path / "it")
    manifest, tensors = read_manifest(tmp_path / "it"), read_tensors(tmp_path / "it", read_manifest(tmp_path / "it"))
    tensors["env/place"] = torch.zeros(5, dtype=torch.int64)
    write_checkpoint(tmp_path / "it", bare(manifest), tensors)
    with pytest.raises(CheckpointError, match=r"environment state 'place' is \(5,\), not \(4,\)"):
        PPO.load(tmp_path / "it", Corridor(4))


def test_checkpoints_of_the_first_format(tmp_path: Path) -> None:
    """They hold the name of a class and no digest: the same environment goes on, another begins anew."""
    model = agent(TMaze(4)).learn(20)
    model.save(tmp_path / "it")
    model.learn(20, reset_num_timesteps=False)
    manifest = json.loads((tmp_path / "it" / MANIFEST).read_text())
    for name in ("digest", "device", "environment"):
        del manifest[name]
    manifest |= {"format_version": 1, "env": "TMaze"}
    manifest["tensors"] = {name: shape for name, (_, shape) in manifest["tensors"].items()}
    (tmp_path / "it" / MANIFEST).write_text(json.dumps(manifest))
    again = PPO.load(tmp_path / "it", TMaze(4), device="cpu")
    assert again._last_obs is not None
    again.learn(20, reset_num_timesteps=False)
    assert torch.equal(again.policy.value_net.weight, model.policy.value_net.weight)
    with pytest.warns(NewEpisodesWarning, match="the environments are not those of the checkpoint"):
        PPO.load(tmp_path / "it", TMaze(4, length=3), device="cpu").learn(20, reset_num_timesteps=False)
    agents.load(tmp_path / "it").save(tmp_path / "new")
    assert PPO.load(tmp_path / "new", TMaze(4), device="cpu")._last_obs is not None


def test_hosts_say_their_id_and_arguments() -> None:
    one, other = (make_env("CartPole-v1", 2, sutton_barto_reward=flag) for flag in (False, True))
    differs = difference(describe(one), describe(other))
    assert "sutton_barto_reward=False" in differs
    assert "sutton_barto_reward=True" in differs
    assert "id='CartPole-v1'" in difference(describe(make_env("MountainCar-v0")), describe(one))
    assert difference(describe(one), describe(make_env("CartPole-v1", 5, sutton_barto_reward=False))) == ""
    single = gym.make("CartPole-v1")
    assert describe(agents.as_tensor_env(single))["arguments"]["id"] == "CartPole-v1"


def test_arguments_that_json_cannot_hold() -> None:
    one, same, other = (describe(Corridor(1, prices=value)) for value in ([Path("a")], [Path("a")], [Path("b")]))
    assert difference(one, same) == ""
    assert "b" in difference(one, other)
    arrays = [describe(Corridor(1, prices={"x": np.arange(n)})) for n in (3, 3, 4)]
    assert difference(arrays[0], arrays[1]) == ""
    assert difference(arrays[0], arrays[2]) != ""
    json.dumps(arrays)


@pytest.mark.parametrize(("entry", "value"), [("goal", -1), ("goal", 10**9), ("cell", 10**9), ("elapsed", 10**9)])
def test_a_place_that_is_not_in_the_maze(entry: str, value: int, tmp_path: Path) -> None:
    agent(InvisibleGoalMaze(4, episode_length=12)).learn(20).save(tmp_path / "it")
    manifest = read_manifest(tmp_path / "it")
    tensors = read_tensors(tmp_path / "it", manifest)
    tensors[f"env/{entry}"][0] = value
    write_checkpoint(tmp_path / "it", bare(manifest), tensors)
    with pytest.raises(CheckpointError, match=r"it does not fit: env"):
        PPO.load(tmp_path / "it", InvisibleGoalMaze(4, episode_length=12))


# -- another device ----------------------------------------------------------------------------------------------------


def bare(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a learner says, without what the format adds."""
    added = ("digest", "format", "format_version", "tensors_sha256", "tensors")
    return {name: value for name, value in manifest.items() if name not in added}


def test_a_checkpoint_of_another_device_goes_on_with_new_random_numbers(tmp_path: Path) -> None:
    """As a run on CUDA leaves it: its environments' generator has 16 bytes, and there is one more."""
    agent(Corridor(4, 9)).learn(20).save(tmp_path / "it")
    manifest, tensors = read_manifest(tmp_path / "it"), read_tensors(tmp_path / "it", read_manifest(tmp_path / "it"))
    tensors["env/generator"] = tensors["rng/cuda/0"] = torch.zeros(16, dtype=torch.uint8)
    write_checkpoint(tmp_path / "it", bare(manifest) | {"device": "cuda"}, tensors)
    with pytest.warns(NewEpisodesWarning, match="new random numbers: the checkpoint is of cuda, this run of cpu"):
        model = PPO.load(tmp_path / "it", Corridor(4, 9), device="cpu")
    assert model.new_episodes == ""
    assert torch.equal(model.tensor_env.place, tensors["env/place"])  # type: ignore[attr-defined]
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 40
