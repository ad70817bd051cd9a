"""Where checkpoints lie: folders, zips, file objects; what is left over, permissions, the older one that is whole."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import agents
from agents import A2C, PPO, CheckpointError, latest_checkpoint
from agents.checkpoint import MANIFEST, TENSORS, digest, load_weights, prune, read_manifest, read_tensors
from agents.run.callbacks import CheckpointEvery
from envs.tmaze import TMaze

KWARGS = {"memory": "gru", "memory_kwargs": {"hidden_size": 6}}


def env() -> TMaze:
    return TMaze(4, length=2, max_steps=7)


def agent() -> PPO:
    return PPO("MemoryPolicy", env(), n_steps=7, n_epochs=1, policy_kwargs=KWARGS, seed=5, device="cpu")


@pytest.fixture(scope="module")
def trained() -> PPO:
    return agent().learn(28)


def learned(model: object) -> torch.Tensor:
    """Weights after one more iteration."""
    assert isinstance(model, PPO)
    return model.learn(28, reset_num_timesteps=False).policy.value_net.weight.detach().clone()


# -- SB3's habits ------------------------------------------------------------------------------------------------------


def test_one_file_where_the_name_ends_in_zip(trained: PPO, tmp_path: Path) -> None:
    trained.save(tmp_path / "best.zip")
    assert zipfile.is_zipfile(tmp_path / "best.zip")
    for name in ("best", "best.zip"):
        assert PPO.load(tmp_path / name, env(), device="cpu").num_timesteps == 28
        assert agents.load(tmp_path / name).num_timesteps == 28
    trained.save(tmp_path / "best.zip")
    assert [file.name for file in tmp_path.iterdir()] == ["best.zip"]
    trained.save(tmp_path / "folder")
    assert PPO.load(tmp_path / "folder.zip").num_timesteps == 28


def test_numbers_of_numpy_are_saved(tmp_path: Path) -> None:
    numbers = PPO("MemoryPolicy", TMaze(2), n_steps=np.int64(4), seed=np.int64(3), n_epochs=np.int32(1), device="cpu")
    numbers.gamma = np.float32(0.5)  # type: ignore[assignment]
    numbers.learn(np.int64(8)).save(tmp_path / "numpy")  # type: ignore[arg-type]
    loaded = PPO.load(tmp_path / "numpy", device="cpu")
    assert (loaded.num_timesteps, loaded.gamma, loaded.seed) == (8, 0.5, 3)
    with pytest.raises(ValueError, match="there is no environment to learn from; call set_env"):
        loaded.learn(8)


def test_a_folder_with_other_files_is_not_replaced(trained: PPO, tmp_path: Path) -> None:
    """Such as that of a run, from which the agent was loaded."""
    run, file, checkpoint = tmp_path / "run", tmp_path / "file", tmp_path / "checkpoint"
    run.mkdir()
    for other in (run / "config.yaml", file):
        other.write_text("mine")
    for place in (run, file):
        with pytest.raises(ValueError, match=rf"{place.name} is a (folder|file).*: expected a new name, the folder of"):
            trained.save(place)
    assert (run / "config.yaml").read_text() == file.read_text() == "mine"
    trained.save(checkpoint)
    (checkpoint / "vecnormalize.pkl").write_text("mine")
    trained.save(checkpoint)
    assert sorted(path.name for path in checkpoint.iterdir()) == [MANIFEST, TENSORS, "vecnormalize.pkl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "file", "run"]


def test_a_full_disk_leaves_the_old_one_and_nothing_else(
    trained: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.save(tmp_path / "saved")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*saved'"):
        trained.save(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert agents.load(tmp_path / "saved").num_timesteps == 28


def test_a_file_object(trained: PPO) -> None:
    buffer = io.BytesIO()
    trained.save(buffer)
    with pytest.raises(TypeError, match="the checkpoint is given as None, expected a path or a binary file object"):
        PPO.load(None)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"no checkpoint at the checkpoint in memory: .* seek\(0\) first"):
        PPO.load(buffer)
    buffer.seek(0)
    assert PPO.load(buffer, env(), device="cpu")._last_obs is not None
    buffer.seek(0)
    assert type(agents.load(buffer)) is PPO
    for wrong in (None, 3):
        with pytest.raises(TypeError, match=f"saved as {wrong}, expected a path or a binary file object"):
            trained.save(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_packed_zip_is_not_unpacked(compression: int, tmp_path: Path) -> None:
    """A kilobyte may unpack to gigabytes."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", compression) as archive:
        archive.writestr(MANIFEST, b"0" * 10_000_000)
    with pytest.raises(CheckpointError, match="expected it uncompressed"):
        PPO.load(tmp_path / "bomb.zip")


def test_the_zip_of_another_library(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sb3.zip", "w") as archive:
        archive.writestr("data", b"{}")
    with pytest.raises(CheckpointError, match=rf"no checkpoint at .*sb3.zip: the zip has no {MANIFEST}"):
        PPO.load(tmp_path / "sb3.zip")


def test_set_parameters_from_a_checkpoint(trained: PPO, tmp_path: Path) -> None:
    trained.save(tmp_path / "it")
    other = agent()
    other.set_parameters(tmp_path / "it")
    assert torch.equal(other.policy.value_net.weight, trained.policy.value_net.weight)
    assert len(other.policy.optimizer.state) == len(trained.policy.optimizer.state)
    other.set_parameters(trained.get_parameters())
    small = {"memory": "gru", "memory_kwargs": {"hidden_size": 5}}
    with pytest.raises(CheckpointError, match=r"it does not fit: .* differ"):
        PPO("MemoryPolicy", env(), policy_kwargs=small, device="cpu").set_parameters(tmp_path / "it")


def test_custom_objects_and_exclude_and_include(trained: PPO, tmp_path: Path) -> None:
    trained.save(tmp_path / "it", exclude=["logger"])
    assert PPO.load(tmp_path / "it", custom_objects={"learning_rate": 0.5, "lr_schedule": None}).learning_rate == 0.5
    with pytest.raises(ValueError, match="include is my_table, but the contents of a checkpoint are fixed"):
        trained.save(tmp_path / "it", include=["my_table"])


# -- what is saved again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_env", [False, True])
def test_load_and_save_keeps_everything(with_env: bool, trained: PPO, tmp_path: Path) -> None:
    """load(b).learn == load(a).learn, whatever moves the generators in between."""
    trained.save(tmp_path / "a")
    torch.rand(3)
    PPO.load(tmp_path / "a", env() if with_env else None, device="cpu").save(tmp_path / "b")
    one, other = (read_tensors(tmp_path / name, read_manifest(tmp_path / name)) for name in "ab")
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    torch.rand(3)
    weights = [learned(PPO.load(tmp_path / name, env(), device="cpu")) for name in "ab"]
    assert torch.equal(*weights)


# -- what is left over -------------------------------------------------------------------------------------------------


def test_leftovers_of_killed_runs_are_removed_by_the_next_save(trained: PPO, tmp_path: Path) -> None:
    saver = CheckpointEvery(tmp_path, keep=2)
    saver.model = trained
    for step in (3, 5, 7):
        trained.save(tmp_path / f"step_{step:012d}")
    for word in ("partial", "gone", "old"):
        (tmp_path / f".step_000000000004.{word}").mkdir()
        (tmp_path / f".step_000000000004.{word}" / TENSORS).touch()
    (tmp_path / ".mine").mkdir()
    saver.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "step_000000000007", "step_000000000028"]


def test_an_old_one_never_bears_its_name_half_removed(
    trained: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (3, 5):
        trained.save(tmp_path / f"step_{step}")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # killed before it removed anything
    prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step_3.gone", "step_5"]


def test_a_replacement_that_died_is_found_as_the_newest(trained: PPO, tmp_path: Path) -> None:
    for step in (3, 5):
        trained.save(tmp_path / "checkpoints" / f"step_{step}")
    (tmp_path / "checkpoints" / "step_5").rename(tmp_path / "checkpoints" / ".step_5.old")
    assert latest_checkpoint(tmp_path).name == "step_5"
    assert agents.load(tmp_path).num_timesteps == 28


@pytest.mark.skipif(os.name == "nt", reason="permissions of another kind")
def test_permissions_follow_the_umask(trained: PPO, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        trained.save(tmp_path / "it")
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / "it" / name).stat().st_mode) for name in (MANIFEST, TENSORS)} == {0o640}


# -- the older one -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
@pytest.mark.parametrize("how", ["empty", "cut", "flipped"])
def test_an_older_whole_one_is_named(name: str, how: str, trained: PPO, tmp_path: Path) -> None:
    steps = [tmp_path / "checkpoints" / f"step_{step}" for step in (3, 5, 7)]
    for step in steps:
        trained.save(step)
    (steps[1] / TENSORS).write_bytes(b"damaged as well")
    data = bytearray((steps[2] / name).read_bytes())
    data = data[: {"empty": 0, "cut": 500}.get(how, len(data))]
    if how == "flipped":
        data[-40] ^= 1
    (steps[2] / name).write_bytes(data)
    for load in (agents.load, PPO.load, lambda path: load_weights(agent().policy, path)):
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path)
        assert str(steps[2] / name) in str(caught.value)
        assert f"{steps[0]} is older and intact" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="holds PPO, expected A2C"):  # nothing is damaged: no advice
        A2C.load(steps[0])


def test_every_flipped_bit_of_a_manifest_is_seen(trained: PPO, tmp_path: Path) -> None:
    """But for those that change no meaning: of white space to another, say."""
    trained.save(tmp_path / "it")
    data = (tmp_path / "it" / MANIFEST).read_bytes()
    good = json.loads(data)
    assert good["digest"] == digest(good)
    for at in range(0, len(data), 37):
        for bit in (0, 4):
            broken = bytearray(data)
            broken[at] ^= 1 << bit
            (tmp_path / "it" / MANIFEST).write_bytes(broken)
            with contextlib.suppress(CheckpointError):
                assert read_manifest(tmp_path / "it") == good
