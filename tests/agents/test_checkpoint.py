"""Checkpoints: N + N = 2N bit for bit, and whole or not there. Hostile ones: test_hostile_checkpoint.py."""

from __future__ import annotations

import functools
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from torch import Tensor

import agents
from agents import A2C, PPO, CheckpointError, MemoryOnPolicyAlgorithm, latest_checkpoint
from agents.checkpoint import MANIFEST
from agents.checkpoint.encoding import decode_space, encode_space
from agents.checkpoint.learner import NewEpisodesWarning
from envs.maze import InvisibleGoalMaze
from envs.repeat_first import RepeatFirst
from envs.tensor_env import TensorEnv
from envs.tmaze import TMaze

SMALL = {
    "lstm": {"hidden_size": 12},
    "mnm-p": {"hidden_size": 12, "key_size": 6, "value_size": 6, "memory_units": 6, "heads": 2},
    "kanerva++": {"memory_size": 8, "crop_size": 4, "embedding_size": 8, "dense_size": 8, "latent_size": 4},
}
ENVS: dict[str, Callable[[], TensorEnv]] = {
    "tmaze": lambda: TMaze(4, length=2, max_steps=7),  # every copy ends when it likes, some are cut
    "maze": lambda: InvisibleGoalMaze(4, episode_length=12),  # all end together, in the middle of a rollout
}
N = 3 * 7 * 4  # three rollouts of 7 steps of 4 copies


def build(learner: type[MemoryOnPolicyAlgorithm], memory: str, env: str) -> MemoryOnPolicyAlgorithm:
    kwargs: dict[str, Any] = {"policy_kwargs": {"memory": memory, "memory_kwargs": SMALL[memory]}, "seed": 5}
    if learner is PPO:
        kwargs["n_epochs"] = 2
    return learner("MemoryPolicy", ENVS[env](), n_steps=7, device="cpu", **kwargs)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dictionaries as one."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {name: leaf for key, entry in tree.items() for name, leaf in flat(entry, f"{prefix}/{key}").items()}


def fingerprint(model: MemoryOnPolicyAlgorithm) -> dict[str, Tensor]:
    """Everything that a run's future and its log depend on."""
    episodes = [(episode["r"], episode["l"]) for episode in model.ep_info_buffer or ()]
    tensors = {
        **flat(dict(model.policy.state_dict()), "policy"),
        **flat(model.policy.optimizer.state_dict()["state"], "optimizer"),
        **flat(model.tensor_env.state_dict(), "env"),
        **flat(model.rollout_state.memory, "memory"),
        "generator": torch.get_rng_state(),
        "counters": torch.tensor([model.num_timesteps, model._n_updates, model._episode_num]),
        "episodes": torch.tensor(episodes, dtype=torch.float64),
        "running returns": torch.from_numpy(model.episodes.returns),
        "running lengths": torch.from_numpy(model.episodes.lengths),
        "starts": model.rollout_state.starts,
    }
    return {name: value.detach().clone() for name, value in tensors.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def scramble() -> None:
    """Move every random generator, by something else each time."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(time.time_ns() % 2**31)


CASES = [(learner, memory, env) for learner in (A2C, PPO) for memory in SMALL for env in ENVS]


@pytest.mark.parametrize(("learner", "memory", "env"), CASES)
def test_n_and_n_is_2n(learner: type[MemoryOnPolicyAlgorithm], memory: str, env: str, tmp_path: Path) -> None:
    """Learn 2N; learn N, save, forget, load, learn N: the same bits in everything that matters."""
    whole = fingerprint(build(learner, memory, env).learn(2 * N))
    first = build(learner, memory, env).learn(N)
    first.save(tmp_path / "half")
    del first
    scramble()
    second = learner.load(tmp_path / "half", ENVS[env](), device="cpu")
    scramble()
    second.learn(N, reset_num_timesteps=False)
    assert_same(fingerprint(second), whole)
    assert second.num_timesteps == 2 * N
    assert len(whole["episodes"]) > 3


def test_n_and_n_is_2n_in_another_process(tmp_path: Path) -> None:
    """The same with nothing left of the first half but its files."""
    whole = fingerprint(build(PPO, "lstm", "tmaze").learn(2 * N))
    build(PPO, "lstm", "tmaze").learn(N).save(tmp_path / "half")
    program = f"""
import sys, torch, agents
sys.path[:0] = {[str(Path(__file__).parent)]!r}
torch.set_num_threads(1)
from safetensors.torch import save_file
from test_checkpoint import ENVS, N, fingerprint
model = agents.load({str(tmp_path / "half")!r}, ENVS["tmaze"](), device="cpu").learn(N, reset_num_timesteps=False)
save_file({{name: value.clone() for name, value in fingerprint(model).items()}}, {str(tmp_path / "after")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert_same(load_file(tmp_path / "after"), {name: value.cpu() for name, value in whole.items()})


def test_without_loading_the_second_half_differs_from_the_first() -> None:
    """The test above can fail: N more steps from a fresh agent are not the last N of 2N."""
    whole = fingerprint(build(PPO, "lstm", "tmaze").learn(2 * N))
    half = fingerprint(build(PPO, "lstm", "tmaze").learn(N))
    assert sum(not torch.equal(half[name], whole[name]) for name in whole) > 10


def test_a_trained_agent_acts_as_the_one_loaded_from_its_checkpoint(tmp_path: Path) -> None:
    """Kanerva++ derives numbers from its weights, and fused Adam changes these without telling anybody."""
    trained = build(PPO, "kanerva++", "tmaze").learn(4 * N)
    assert trained.policy.optimizer.defaults["fused"]
    trained.save(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent", device="cpu")
    observations, found = torch.randn(5, 4, 3), []
    for model in (trained, loaded):
        with torch.no_grad():
            memory = model.policy.memory
            found.append(memory.unroll(observations, None, memory.initial_state(4)).outputs)
    assert torch.equal(*found)


def test_what_comes_back(tmp_path: Path) -> None:
    """Arguments, schedules, classes and counters, and a prediction to the bit."""
    model = PPO(
        "MemoryPolicy",
        RepeatFirst(3, length=4),
        LinearSchedule(1e-3, 1e-4, 0.5),
        n_steps=4,
        clip_range=0.3,
        gamma=0.7,
        target_kl=0.5,
        policy_kwargs={
            "memory": "gru",
            "memory_kwargs": {"hidden_size": 9},
            "net_arch": {"pi": [8], "vf": [7]},
            "activation_fn": torch.nn.ReLU,
            "optimizer_class": torch.optim.AdamW,
            "features_extractor_class": FlattenExtractor,
        },
        stats_window_size=7,
        seed=1,
    ).learn(24)
    model.save(tmp_path / "it")
    again = agents.load(tmp_path / "it")
    assert type(again) is PPO
    for name in ("n_steps", "gamma", "target_kl", "seed", "_stats_window_size", "num_timesteps", "n_envs"):
        assert getattr(again, name) == getattr(model, name), name
    assert again.clip_range == 0.3
    assert again.lr_schedule(0.75) == model.lr_schedule(0.75) == pytest.approx(5.5e-4)
    assert isinstance(again.policy.optimizer, torch.optim.AdamW)
    assert str(again.policy) == str(model.policy)
    obs = np.random.default_rng(0).random((5, 3, 5)).astype(np.float32)
    states = [None, None]
    for frame in obs:
        (one, states[0]), (two, states[1]) = (
            each.predict(frame, states[index], deterministic=True) for index, each in enumerate((model, again))
        )
        assert (one == two).all()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_arguments_given_to_load_replace_the_saved_ones(tmp_path: Path) -> None:
    model = build(PPO, "lstm", "tmaze")
    model.save(tmp_path / "it")
    again = PPO.load(tmp_path / "it", ENVS["tmaze"](), gamma=0.123, n_epochs=2)
    assert (again.gamma, again.n_epochs, again.n_steps) == (0.123, 2, 7)


def test_a_seed_given_to_load_is_used(tmp_path: Path) -> None:
    build(PPO, "lstm", "tmaze").learn(N).save(tmp_path / "it")
    parameters = []
    for seed in (None, 5, 5, 6):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            again = PPO.load(tmp_path / "it", ENVS["tmaze"](), device="cpu", **({} if seed is None else {"seed": seed}))
        said = [f"new random numbers: seed {seed} was given"] if seed else []
        assert [str(one.message) for one in caught if one.category is NewEpisodesWarning] == said
        again.learn(N, reset_num_timesteps=False)
        parameters.append(torch.cat([p.detach().flatten() for p in again.policy.parameters()]))
    saved, five, again_five, six = parameters
    assert torch.equal(five, again_five)
    assert not torch.equal(five, saved)
    assert not torch.equal(five, six)


@pytest.mark.parametrize(
    ("given", "eps", "momentum"),
    [
        ({}, 1e-5, 0.5),
        ({"rms_prop_eps": 0.25}, 0.25, 0.5),
        ({"policy_kwargs": {"optimizer_kwargs": {"momentum": 0.75}}}, 1e-5, 0.75),
        ({"policy_kwargs": {"optimizer_kwargs": {"eps": 0.5}}}, 0.5, 0),
    ],
)
def test_arguments_of_the_optimiser_given_to_load_are_used(
    given: dict[str, Any], eps: float, momentum: float, tmp_path: Path
) -> None:
    policy = {"memory": "gru", "optimizer_kwargs": {"momentum": 0.5}}
    A2C("MemoryPolicy", ENVS["tmaze"](), policy_kwargs=policy, seed=0, device="cpu").save(tmp_path / "it")
    again = A2C.load(tmp_path / "it", ENVS["tmaze"](), device="cpu", **given)
    (group,) = again.policy.optimizer.param_groups
    assert (group["eps"], group["momentum"]) == (eps, momentum)


def test_another_number_of_copies_starts_new_episodes(tmp_path: Path) -> None:
    build(PPO, "lstm", "tmaze").learn(N).save(tmp_path / "it")
    again = PPO.load(tmp_path / "it", TMaze(9, length=2, max_steps=7)).learn(7 * 9, reset_num_timesteps=False)
    assert again.num_timesteps == N + 7 * 9


def test_predict_only_and_train_later(tmp_path: Path) -> None:
    build(A2C, "lstm", "tmaze").learn(N).save(tmp_path / "it")
    again = A2C.load(tmp_path / "it")
    assert again.env is None
    action, _ = again.predict(np.zeros((2, 3), np.float32))
    assert action.shape == (2,)
    again.set_env(TMaze(2, length=2))
    again.learn(7 * 2, reset_num_timesteps=False)
    assert again.num_timesteps == N + 7 * 2


# -- whole or not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken", ["json.dumps", "os.fsync", "agents.checkpoint.format.bytes_of", "rename 1", "rename 2"]
)
def test_a_save_that_dies_half_way_leaves_the_old_checkpoint(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(A2C, "lstm", "tmaze").learn(N)
    model.save(tmp_path / "it")
    before = fingerprint(model)
    model.learn(N, reset_num_timesteps=False)

    calls = iter(range(1, 10))
    rename = Path.rename

    def die(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    def die_later(path: Path, target: Path) -> Path:
        return die() if next(calls) == int(broken[-1]) else rename(path, target)  # type: ignore[return-value]

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "rename", die_later) if "rename" in broken else (broken, die)))
        with pytest.raises(OSError, match="no space"):
            model.save(tmp_path / "it")

    again = A2C.load(tmp_path / "it", ENVS["tmaze"](), device="cpu")
    assert again.num_timesteps == N
    assert torch.equal(again.policy.value_net.weight, before["policy/value_net.weight"])
    model.save(tmp_path / "it")  # and what was left lying about is in nobody's way
    assert A2C.load(tmp_path / "it").num_timesteps == 2 * N
    assert [entry.name for entry in tmp_path.iterdir()] == ["it"]


def test_latest_checkpoint_sees_whole_ones_only(tmp_path: Path) -> None:
    model = build(A2C, "lstm", "tmaze")
    for step in (5, 40, 200):
        model.save(tmp_path / "checkpoints" / f"step_{step}")
    (tmp_path / "checkpoints" / ".step_999.partial").mkdir()
    (tmp_path / "checkpoints" / "step_888").mkdir()
    (tmp_path / "checkpoints" / "step_x").mkdir()
    (tmp_path / "checkpoints" / "step_x" / MANIFEST).touch()
    assert latest_checkpoint(tmp_path).name == "step_200"
    assert latest_checkpoint(tmp_path / "checkpoints" / "step_40").name == "step_40"
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*empty: expected"):
        latest_checkpoint(tmp_path / "empty")


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class of forked processes."""
    if not hasattr(os, "fork"):
        pytest.skip("processes cannot be forked here")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("fault_children").Child


def test_killed_while_saving(tmp_path: Path, child: Any) -> None:
    """A process that does nothing but replace its checkpoint is killed outright, again and again."""
    model = build(A2C, "lstm", "tmaze").learn(28)

    def save(written: int) -> None:
        while True:
            model.num_timesteps += 1
            model.save(tmp_path / "it")
            os.write(written, f"{model.num_timesteps}\n".encode())

    generator = random.Random(0)
    for _ in range(4):
        reading, writing = os.pipe()
        process = child(functools.partial(save, writing), tmp_path)
        os.close(writing)
        with os.fdopen(reading) as lines:
            while int(lines.readline()) < 32:
                pass
            time.sleep(0.02 * generator.random())
            process.send(signal.SIGKILL)
            written = [int(line) for line in lines]
        assert process.wait(60).status == -signal.SIGKILL
        loaded = A2C.load(tmp_path / "it").num_timesteps
        assert loaded >= (written[-1] if written else 32)


def test_killed_before_each_operation_of_a_save(tmp_path: Path, child: Any) -> None:
    """Whether it opens, renames or removes a file next: the old checkpoint is there, or the new one."""
    model = build(A2C, "lstm", "tmaze").learn(28)
    model.save(tmp_path / "it")
    kept = model.num_timesteps

    def save(operations: int) -> None:
        left = operations

        def watch(event: str, arguments: Any) -> None:
            nonlocal left
            left -= event == "open" or event.startswith(("os.", "shutil."))
            if left == -1:  # and not again, as a kill is an event too
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)  # for good: in the child alone
        model.save(tmp_path / "it")
        os._exit(0)

    for operations in range(100):
        model.num_timesteps = kept + 1
        status = child(functools.partial(save, operations), tmp_path).wait(60).status
        loaded = A2C.load(tmp_path / "it").num_timesteps
        assert loaded in (kept, kept + 1), operations
        kept = loaded
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert 10 < operations < 99


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (3,)),
        spaces.Box(np.array([-1.0, -np.inf]), np.array([0.5, np.inf]), dtype=np.float64),
        spaces.Box(0, 255, (36, 36, 3), np.uint8),
        spaces.Discrete(4),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 5]),
        spaces.MultiBinary(6),
        spaces.MultiBinary((2, 3)),
        spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(0.0, 1.0, (2, 2))}),
    ],
    ids=str,
)
def test_spaces_come_back(space: gym.Space[Any]) -> None:
    assert decode_space(json.loads(json.dumps(encode_space(space)))) == space
