"""Checkpoints: N + N = 2N bit for bit, whole or not there, and nothing in a file is ever run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from torch import Tensor

import agents
from agents import A2C, PPO, CheckpointError, MemoryOnPolicyAlgorithm, latest_checkpoint
from agents.checkpoint import MANIFEST, TENSORS
from agents.encoding import decode_space, encode_space
from envs.maze import InvisibleGoalMaze
from envs.repeat_first import RepeatFirst
from envs.tensor_env import TensorEnv
from envs.tmaze import TMaze

SMALL = {
    "lstm": {"hidden_size": 12},
    "mnm-p": {"hidden_size": 12, "key_size": 6, "value_size": 6, "memory_units": 6, "heads": 2},
}
ENVS: dict[str, Callable[[], TensorEnv]] = {
    "tmaze": lambda: TMaze(4, length=2, max_steps=7),  # every copy ends when it likes, some are cut
    "maze": lambda: InvisibleGoalMaze(4, episode_length=12),  # all end together, in the middle of a roll-out
}
N = 3 * 7 * 4  # three roll-outs of 7 steps of 4 copies


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
        **flat(model._state, "memory"),
        "generator": torch.get_rng_state(),
        "counters": torch.tensor([model.num_timesteps, model._n_updates, model._episode_num]),
        "episodes": torch.tensor(episodes, dtype=torch.float64),
        "running returns": torch.from_numpy(model._episode_returns),
        "running lengths": torch.from_numpy(model._episode_lengths),
        "starts": model._starts,
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
import sys, torch
sys.path[:0] = {[str(Path(__file__).parent)]!r}
torch.set_num_threads(1)
from test_checkpoint import ENVS, N, agents, fingerprint, save_file
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


@pytest.mark.parametrize("broken", ["json.dump", "os.fsync", "agents.checkpoint.save_file", "rename 1", "rename 2"])
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


def test_killed_while_saving(tmp_path: Path) -> None:
    """A process that does nothing but replace its checkpoint is killed outright, again and again."""
    program = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from test_checkpoint import A2C, build
model = build(A2C, "lstm", "tmaze").learn(28)
while True:
    model.num_timesteps += 1
    model.save({str(tmp_path / "it")!r})
    print(model.num_timesteps, flush=True)
"""
    generator = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while int(process.stdout.readline()) < 40:
            pass
        time.sleep(0.02 * generator.random())
        process.send_signal(signal.SIGKILL)
        written = [int(line) for line in process.stdout]
        process.wait()
        loaded = A2C.load(tmp_path / "it").num_timesteps
        assert loaded >= (written[-1] if written else 40)


# -- hostile or foreign ------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "good"
    build(PPO, "lstm", "tmaze").learn(28).save(path)
    return path


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def write_tensors(path: Path, write: Callable[[Path], object]) -> None:
    """Another tensor file, with the manifest made to vouch for it."""
    write(path / TENSORS)
    digest = hashlib.sha256((path / TENSORS).read_bytes()).hexdigest()
    edit(path, lambda manifest: manifest.update(tensors_sha256=digest))


def refused(path: Path, *expected: str, env: Any = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        PPO.load(path, env)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for words in expected:
        assert words in message
    return message


def test_the_untouched_copy_loads(copied: Path) -> None:
    assert PPO.load(copied, ENVS["tmaze"]()).num_timesteps == 28


def test_a_pickle_is_not_unpickled(copied: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    write_tensors(copied, lambda file: file.write_bytes(pickle.dumps(Bomb(trap))))
    refused(copied, TENSORS, "safetensors")
    write_tensors(copied, lambda file: torch.save({"policy/x": Bomb(trap)}, file))
    refused(copied, TENSORS, "safetensors")
    (copied / MANIFEST).write_bytes(pickle.dumps(Bomb(trap)))
    refused(copied, MANIFEST, "JSON")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Bomb(trap)))  # the trap itself works
    assert trap.exists()


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "torch.load", "optim.os", "nn.__import__"])
@pytest.mark.parametrize("where", ["policy", "optimizer_class", "learning_rate"])
def test_no_name_in_a_manifest_is_imported(name: str, where: str, copied: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        config = manifest["config"]
        place = {"policy": manifest, "optimizer_class": config["policy_kwargs"]}.get(where, config)
        place[where] = {"$class": name}

    edit(copied, change)
    refused(copied, where, name)


def test_a_memory_must_be_a_registered_one(copied: Path) -> None:
    edit(copied, lambda manifest: manifest["config"]["policy_kwargs"].update(memory="os.system"))
    refused(copied, "no memory is called 'os.system'", "known:")


def test_arguments_that_a_checkpoint_does_not_keep_are_ignored(copied: Path, tmp_path: Path) -> None:
    """A stranger's file does not say where to log, nor on which device to run."""
    more = {"tensorboard_log": str(tmp_path / "log"), "device": "cuda:7", "env": "x"}
    edit(copied, lambda manifest: manifest["config"].update(more))
    model = PPO.load(copied, ENVS["tmaze"]())
    assert model.tensorboard_log is None


def test_truncated_tensors(copied: Path) -> None:
    data = (copied / TENSORS).read_bytes()
    (copied / TENSORS).write_bytes(data[: len(data) // 2])
    refused(copied, TENSORS, "sha256")
    write_tensors(copied, lambda file: file.write_bytes(data[: len(data) // 2]))
    refused(copied, TENSORS, "safetensors")


def test_a_flipped_bit(copied: Path) -> None:
    data = bytearray((copied / TENSORS).read_bytes())
    data[-100] ^= 4
    (copied / TENSORS).write_bytes(data)
    refused(copied, TENSORS, "expected sha256")


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_a_missing_file(name: str, copied: Path) -> None:
    (copied / name).unlink()
    refused(copied, name, "expected")


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no checkpoint at")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "no checkpoint at")


@pytest.mark.parametrize("version", [2, 1000, "2", None, [1]])
def test_a_newer_format(version: Any, copied: Path) -> None:
    edit(copied, lambda manifest: manifest.update(format_version=version))
    refused(copied, "format version", "reads up to 1")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "zip"}', "[" * 100_000, "\x00", '"' + "a" * 10])
def test_a_manifest_that_is_none(text: str, copied: Path) -> None:
    (copied / MANIFEST).write_text(text)
    refused(copied, MANIFEST, "expected")


def test_another_algorithm(copied: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a PPO, expected a A2C"):
        A2C.load(copied)
    edit(copied, lambda manifest: manifest.update(algorithm="os.system"))
    with pytest.raises(CheckpointError, match=r"holds a 'os.system', this Engram knows a2c, ppo"):
        agents.load(copied)


@pytest.mark.parametrize("env", [RepeatFirst(4), InvisibleGoalMaze(4)], ids=["repeat", "maze"])
def test_other_spaces(env: TensorEnv, copied: Path) -> None:
    with pytest.raises(CheckpointError, match=r"observation_space is Box\(.*but it was made with Box\(") as caught:
        PPO.load(copied, env)
    assert str(copied) in str(caught.value)


TOP = ("config", "counters", "param_groups", "observation_space", "action_space", "policy", "num_envs", "may_start")


@pytest.mark.parametrize("key", TOP)
def test_a_missing_entry(key: str, copied: Path) -> None:
    edit(copied, lambda manifest: manifest.pop(key))
    refused(copied, "expected an entry", key, env=ENVS["tmaze"]())


@pytest.mark.parametrize("key", TOP)
@pytest.mark.parametrize("junk", [None, [], "x", 3, {"kind": "Discrete", "n": -1, "start": 0}], ids=str)
def test_junk_in_an_entry_gives_an_error_or_a_model(key: str, junk: Any, copied: Path) -> None:
    """Whatever a file says, the answer is a model or one CheckpointError."""
    edit(copied, lambda manifest: manifest.update({key: junk}))
    with contextlib.suppress(CheckpointError):
        PPO.load(copied, ENVS["tmaze"]())


@pytest.mark.parametrize("prefix", ["policy/", "optimizer/", "env/", "rng/", "memory/", "run/starts", "run/obs/"])
def test_missing_tensors(prefix: str, copied: Path) -> None:
    def remove_one(file: Path) -> None:
        tensors = load_file(file)
        del tensors[sorted(name for name in tensors if name.startswith(prefix))[0]]
        save_file(tensors, file)

    write_tensors(copied, remove_one)
    refused(copied, TENSORS, "expected the tensors that manifest.json lists", env=ENVS["tmaze"]())
    edit(copied, lambda manifest: manifest.update(tensors=listed(copied)))  # a manifest that knows no better
    if not prefix.startswith(("rng", "optimizer")):  # these are looked at when they are used
        refused(copied, env=ENVS["tmaze"]())


def listed(path: Path) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in load_file(path / TENSORS).items()}


def test_a_tensor_of_another_shape(copied: Path) -> None:
    def change(file: Path) -> None:
        tensors = load_file(file)
        tensors["policy/value_net.weight"] = torch.zeros(1, 99)
        save_file(tensors, file)

    write_tensors(copied, change)
    edit(copied, lambda manifest: manifest.update(tensors=listed(copied)))
    refused(copied, "value_net.weight", "size mismatch")


# -- what is the user's own -------------------------------------------------------------------------------------------


class OwnExtractor(FlattenExtractor):
    """A class no checkpoint brings back."""


def own_schedule(progress: float) -> float:
    return 1e-3 * progress


def test_a_class_of_the_users_own_is_asked_for(tmp_path: Path) -> None:
    kwargs = {"memory": "gru", "features_extractor_class": OwnExtractor}
    PPO("MemoryPolicy", RepeatFirst(2), own_schedule, n_steps=4, policy_kwargs=kwargs).save(tmp_path / "it")
    refused(tmp_path / "it", "OwnExtractor", "give it to load(")
    given: dict[str, Any] = {"policy_kwargs": {"features_extractor_class": OwnExtractor}}
    with pytest.raises(CheckpointError, match=r"learning_rate was .*own_schedule.* give it to load\(learning_rate="):
        PPO.load(tmp_path / "it", **given)
    model = PPO.load(tmp_path / "it", learning_rate=own_schedule, **given)
    assert type(model.policy.features_extractor) is OwnExtractor
    assert model.lr_schedule(0.5) == 5e-4
    assert given == {"policy_kwargs": {"features_extractor_class": OwnExtractor}}


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
