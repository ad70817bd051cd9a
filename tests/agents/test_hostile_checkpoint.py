"""Hostile, damaged and foreign checkpoints: each is refused in one line, and nothing in a file is ever run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

import agents
from agents import A2C, PPO, CheckpointError
from agents.checkpoint import MANIFEST, TENSORS, digest
from envs.maze import InvisibleGoalMaze
from envs.repeat_first import RepeatFirst
from envs.tensor_env import TensorEnv
from envs.tmaze import TMaze
from policies.policy import MemoryActorCriticPolicy

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from hostile_checkpoints import make_runs, survey


def tmaze() -> TMaze:
    """Where the saved agent was trained."""
    return TMaze(4, length=2, max_steps=7)


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "good"
    kwargs = {"memory": "lstm", "memory_kwargs": {"hidden_size": 12}}
    PPO("MemoryPolicy", tmaze(), n_steps=7, n_epochs=2, policy_kwargs=kwargs, seed=5, device="cpu").learn(28).save(path)
    return path


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and seal it again, as somebody would who knows how."""
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest | {"digest": digest(manifest)}))


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
    assert PPO.load(copied, tmaze()).num_timesteps == 28


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
    model = PPO.load(copied, tmaze())
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


@pytest.mark.parametrize("version", [3, 1000, "2", None, [1], True, 0, -1, 1.0])
def test_a_newer_format(version: Any, copied: Path) -> None:
    edit(copied, lambda manifest: manifest.update(format_version=version))
    refused(copied, "format version", "reads up to 2")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "zip"}', "[" * 100_000, "\x00", '"' + "a" * 10])
def test_a_manifest_that_is_none(text: str, copied: Path) -> None:
    (copied / MANIFEST).write_text(text)
    refused(copied, MANIFEST, "expected")


def test_another_algorithm(copied: Path) -> None:
    with pytest.raises(CheckpointError, match="holds PPO, expected A2C"):
        A2C.load(copied)
    edit(copied, lambda manifest: manifest.update(algorithm="os.system"))
    with pytest.raises(CheckpointError, match=r"holds 'os.system' of agents.ppo:PPO, this Engram knows a2c, ppo"):
        agents.load(copied)


@pytest.mark.parametrize("env", [RepeatFirst(4), InvisibleGoalMaze(4)], ids=["repeat", "maze"])
def test_other_spaces(env: TensorEnv, copied: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is Box\(.*but the agent was trained with Box\(") as caught:
        PPO.load(copied, env)
    assert str(copied) in str(caught.value)


TOP = ("config", "counters", "param_groups", "observation_space", "action_space", "policy", "num_envs", "may_start")


@pytest.mark.parametrize("key", TOP)
def test_a_missing_entry(key: str, copied: Path) -> None:
    edit(copied, lambda manifest: manifest.pop(key))
    refused(copied, "expected an entry", key, env=tmaze())


@pytest.mark.parametrize("key", TOP)
@pytest.mark.parametrize("junk", [None, [], "x", 3, {"kind": "Discrete", "n": -1, "start": 0}], ids=str)
def test_junk_in_an_entry_gives_an_error_or_a_model(key: str, junk: Any, copied: Path) -> None:
    """Whatever a file says, the answer is a model or one CheckpointError."""
    edit(copied, lambda manifest: manifest.update({key: junk}))
    with contextlib.suppress(CheckpointError):
        PPO.load(copied, tmaze())


@pytest.mark.parametrize("prefix", ["policy/", "optimizer/", "env/", "rng/", "memory/", "run/starts", "run/obs/"])
def test_missing_tensors(prefix: str, copied: Path) -> None:
    def remove_one(file: Path) -> None:
        tensors = load_file(file)
        del tensors[sorted(name for name in tensors if name.startswith(prefix))[0]]
        save_file(tensors, file)

    write_tensors(copied, remove_one)
    refused(copied, TENSORS, "expected the tensors that manifest.json lists", env=tmaze())
    edit(copied, lambda manifest: manifest.update(tensors=listed(copied)))  # a manifest that knows no better
    refused(copied, env=tmaze())


def listed(path: Path) -> dict[str, list[Any]]:
    tensors = load_file(path / TENSORS)
    return {name: [str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in tensors.items()}


def test_a_tensor_of_another_shape(copied: Path) -> None:
    def change(file: Path) -> None:
        tensors = load_file(file)
        tensors["policy/value_net.weight"] = torch.zeros(1, 99)
        save_file(tensors, file)

    write_tensors(copied, change)
    edit(copied, lambda manifest: manifest.update(tensors=listed(copied)))
    refused(copied, "value_net.weight", "size mismatch")


@pytest.mark.parametrize("fused", [None, True])
def test_an_optimiser_s_state_of_another_shape(fused: bool | None, copied: Path) -> None:
    """torch's kernels read beyond the end of a state that is too short."""

    def change(file: Path) -> None:
        tensors = load_file(file)
        tensors["optimizer/1/exp_avg_sq"] = tensors["optimizer/1/exp_avg_sq"].flatten()[:0]
        save_file(tensors, file)

    write_tensors(copied, change)
    edit(copied, lambda manifest: manifest.update(tensors=listed(copied)))
    edit(copied, lambda manifest: manifest["param_groups"][0].update(fused=fused))
    refused(copied, "the optimiser's state is invalid: of parameter 1 it is")


# -- what is the user's own -------------------------------------------------------------------------------------------


class OwnExtractor(FlattenExtractor):
    """A class no checkpoint brings back."""


def own_schedule(progress: float) -> float:
    return 1e-3 * progress


def test_a_class_of_the_users_own_is_asked_for(tmp_path: Path) -> None:
    kwargs = {"memory": "gru", "features_extractor_class": OwnExtractor}
    PPO("MemoryPolicy", RepeatFirst(2), own_schedule, n_steps=4, policy_kwargs=kwargs).save(tmp_path / "it")
    refused(tmp_path / "it", "OwnExtractor", 'give it to load(policy_kwargs={"features_extractor_class": ...})')
    given: dict[str, Any] = {"policy_kwargs": {"features_extractor_class": OwnExtractor}}
    with pytest.raises(CheckpointError, match=r"learning_rate was .*own_schedule.* give it to load\(learning_rate="):
        PPO.load(tmp_path / "it", **given)
    model = PPO.load(tmp_path / "it", learning_rate=own_schedule, **given)
    assert type(model.policy.features_extractor) is OwnExtractor
    assert model.lr_schedule(0.5) == 5e-4
    assert given == {"policy_kwargs": {"features_extractor_class": OwnExtractor}}


class OwnPolicy(MemoryActorCriticPolicy):
    """With a network for an auxiliary loss."""

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        self.reward_net = nn.Linear(self.memory.output_size, 1)


class OwnLearner(PPO):
    """Names its policy."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MemoryPolicy": OwnPolicy}


def test_a_policy_that_its_learner_names_is_known(tmp_path: Path) -> None:
    policy_kwargs = {"memory": "gru"}
    model = OwnLearner("MemoryPolicy", RepeatFirst(2), n_steps=4, policy_kwargs=policy_kwargs, device="cpu").learn(8)
    model.save(tmp_path / "it")
    loaded = OwnLearner.load(tmp_path / "it", device="cpu")
    assert type(loaded.policy) is OwnPolicy
    assert isinstance(model.policy, OwnPolicy)
    assert torch.equal(loaded.policy.reward_net.weight, model.policy.reward_net.weight)
    PPO(OwnPolicy, RepeatFirst(2), n_steps=4, policy_kwargs=policy_kwargs).save(tmp_path / "other")
    refused(tmp_path / "other", "OwnPolicy", r"give it to load(policy=...)")


class Measured(FlattenExtractor):
    """One that needs numbers to be built: there are none while sizes are compared."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space)
        self.scale = float(torch.ones(3).sum().item())


def test_a_class_that_needs_numbers_to_be_built(tmp_path: Path) -> None:
    kwargs = {"memory": "gru", "features_extractor_class": Measured}
    PPO("MemoryPolicy", RepeatFirst(2), n_steps=4, policy_kwargs=kwargs).save(tmp_path / "it")
    model = PPO.load(tmp_path / "it", policy_kwargs={"features_extractor_class": Measured})
    assert type(model.policy.features_extractor) is Measured


def test_an_argument_out_of_range_can_be_replaced(copied: Path) -> None:
    edit(copied, lambda manifest: manifest["config"].update(ent_coef=-0.5))
    refused(copied, "ent_coef is -0.5, expected a number of at least 0")
    assert PPO.load(copied, ent_coef=0.5).ent_coef == 0.5


# -- files that are none, and a sample of the survey -------------------------------------------------------------------


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
@pytest.mark.parametrize("how", ["pipe", "device", "folder", "endless"])
def test_what_is_no_ordinary_file_is_not_read(how: str, name: str, copied: Path) -> None:
    file = copied / name
    file.unlink()
    if how == "pipe":
        os.mkfifo(file)
    elif how == "device":
        file.symlink_to("/dev/zero")
    elif how == "folder":
        file.mkdir()
    else:
        with open(file, "wb") as stream:
            stream.truncate(1 << 42)  # a hole: takes no room
    refused(copied, name)


@pytest.mark.parametrize("where", ["observation_space", "action_space"])
@pytest.mark.parametrize(
    "space",
    [
        {"kind": "Box", "low": 0.0, "high": 1.0, "shape": [100_000, 100_000], "dtype": "float32"},
        {"kind": "Box", "low": 0.0, "high": 1.0, "shape": [2**21], "dtype": "float32"},
        {"kind": "Discrete", "n": 10**7, "start": 0},
        {"kind": "MultiDiscrete", "nvec": [2**62, 2**62], "start": [0, 0]},
        {"kind": "MultiBinary", "n": [10**6, 10**6]},
    ],
    ids=lambda space: f"{space['kind']}",
)
def test_sizes_are_compared_before_anything_is_made(space: dict[str, Any], where: str, copied: Path) -> None:
    edit(copied, lambda manifest: manifest.update({where: space}))
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(copied, "")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_layers_without_end_are_not_made(copied: Path) -> None:
    edit(copied, lambda manifest: manifest["config"]["policy_kwargs"]["memory_kwargs"].update(num_layers=10**6))
    refused(copied, "more than the")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, copied: Path) -> None:
    def change(file: Path) -> None:
        tensors = load_file(file)
        tensors["policy/value_net.weight"][0, 3] = value
        save_file(tensors, file)

    write_tensors(copied, change)
    refused(copied, "value_net.weight has weights that are infinite or NaN")


def test_weights_beyond_what_can_be_added(copied: Path) -> None:
    """Finite, but no answer comes of them."""

    def change(file: Path) -> None:
        tensors = load_file(file)
        for name, value in tensors.items():
            if name.startswith("policy/"):
                value.fill_(3e38)
        save_file(tensors, file)

    write_tensors(copied, change)
    refused(copied, "no action can be sampled")


def test_a_sample_of_the_survey(tmp_path: Path) -> None:
    """As benchmarks/hostile_checkpoints.py does a thousand times."""
    runs = make_runs(tmp_path, ("gru-ppo", "mnm-supervised"))
    found = survey(seed=17, count=70, runs=runs)
    assert found.failed == []
    assert found.passed == found.tried == 70
    assert found.outcomes["works"] > 3
    assert found.outcomes["refused"] > 40
