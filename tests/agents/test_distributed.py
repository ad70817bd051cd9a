"""Several ranks: they do what one process would do, write once, stop together, and go on after one has died.

What two ranks do is in `rank_cases.py`; both run once, for all tests of this file.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_cases
import torch
from rank_cases import BAD, COPIES, RANKS, STEPS, TRAIN, UPDATES

import agents
import train
from agents.checkpoint import read_manifest, read_tensors
from agents.scale import distributed

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")


def start_ranks(*command: str) -> list[tuple[int, str]]:
    """Statuses and outputs of a program on all ranks. Without torchrun, which ends the others once one has died."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank in range(RANKS):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
        processes.append(
            subprocess.Popen(
                [sys.executable, *command],
                env={**ENVIRONMENT, **address, **place},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have left what they saw."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = start_ranks(str(HERE / "rank_cases.py"), str(folder))
    assert all(status == 0 for status, _ in ended), ended
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each rank saw."""
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


# What is learned


@pytest.mark.parametrize("name", UPDATES)
def test_ranks_learn_what_one_process_learns(name: str, ranks: list[dict[str, Any]]) -> None:
    """Parameters, every logged number and the episodes, after two iterations on the same rollout in float64."""
    one = rank_cases.updates(name)
    for found in (each[name] for each in ranks):
        torch.testing.assert_close(found["parameters"], one["parameters"], rtol=1e-9, atol=1e-9)
        for logged, expected in zip(found["logs"], one["logs"], strict=True):
            assert logged == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert found["episodes"] == one["episodes"]
        assert len(one["episodes"]) > 4
    assert torch.equal(*(each[name]["parameters"]["value_net.weight"] for each in ranks))


def test_the_cases_are_what_they_say(ranks: list[dict[str, Any]]) -> None:
    """Clipping bites, the memory's loss counts, and target_kl ends one run's passes and not the other's."""
    logs = {name: ranks[0][name]["logs"] for name in UPDATES}
    assert logs["a2c, clipped"][0]["train/grad_norm"] > 0.05
    assert logs["a2c, losses of the memory"][0]["train/meta_loss"] > 0.01
    assert logs["supervised, losses of the memory"][0]["train/meta_loss"] > 0.01
    passes = {name: log[0]["train/n_updates"] // rank_cases.SETS for name, log in logs.items() if "ppo" in name}
    assert passes["ppo, one rank beyond target_kl"] == rank_cases.EPOCHS
    assert passes["ppo, stopped by target_kl"] == 1
    for name in ("a2c, values normalised", "ppo, values normalised"):
        assert abs(ranks[0][name]["parameters"]["value_norm.mean"]) > 0.1
    assert ranks[0]["ppo, values normalised"]["parameters"]["obs_norm.count"] == 2 * STEPS * COPIES * RANKS


def test_ranks_start_alike_stay_alike_and_see_different_things(ranks: list[dict[str, Any]]) -> None:
    one, other = (each["learned"] for each in ranks)
    assert not torch.equal(one["before"], other["before"])
    assert one["parameters"].keys() == other["parameters"].keys()
    for name, value in one["parameters"].items():
        assert torch.equal(value, other["parameters"][name]), name
    assert not torch.equal(one["obs"], other["obs"])
    assert [each["learned"]["steps"] for each in ranks] == RANKS * [3 * STEPS * COPIES * RANKS]
    assert [each["learned"]["episodes"] for each in ranks] == RANKS * [3 * COPIES * RANKS]


def test_a_seed_gives_every_rank_numbers_of_its_own(ranks: list[dict[str, Any]]) -> None:
    """Rank 0 those that a process on its own draws."""
    alone = rank_cases.learner("a2c", "gru", COPIES, seed=3).learn(STEPS * COPIES)
    one, other = (each["seeded"] for each in ranks)
    assert torch.equal(one["obs"], alone.rollout.obs)
    assert torch.equal(one["actions"], alone.rollout.actions)
    assert not torch.equal(one["obs"], other["obs"])
    assert not torch.equal(one["actions"], other["actions"])


def test_every_learner_counts_the_steps_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    assert [each["steps"] for each in ranks] == RANKS * [dict.fromkeys(agents.LEARNERS, 2 * STEPS * COPIES * RANKS)]


def test_what_is_not_finite_on_one_rank_ends_all_with_its_name(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "reward is not finite after 8 environment steps on rank 1" in found["poisoned"]["said"]


def test_what_environments_say_of_their_episodes_is_heard_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    """Also where none has ended yet on one of them: in the order of the steps."""
    for found in ranks:
        for heard in found["hosted"]:
            assert heard == {"episodes": [(3.0, 3), (3.0, 3), (6.0, 6)], "successes": [1.0, 1.0, 0.0]}


def test_masks_that_one_rank_alone_has_are_counted(ranks: list[dict[str, Any]]) -> None:
    """The metrics of ranks are added, so all need the same ones."""
    for of_first, of_second, of_none in (found["masked"] for found in ranks):
        assert of_first == of_second
        assert of_first[-1] == 0.75
        assert of_none == [-1.0, -1.0]


# What is written


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "progress.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def steps(run: Path) -> list[int]:
    return [int(row["time/total_timesteps"]) for row in rows(run)]


def test_logs_and_checkpoints_are_written_once(folder: Path, ranks: list[dict[str, Any]]) -> None:
    run = folder / "whole"
    assert [each["runs"]["whole"]["status"] for each in ranks] == [0, 0]
    assert "2 ranks" in ranks[0]["runs"]["whole"]["said"]
    assert "8 environments × 8 steps" in ranks[0]["runs"]["whole"]["said"]
    assert ranks[1]["runs"]["whole"]["said"] == ""
    assert steps(run) == list(range(64, 769, 64))
    writers = {
        file.name.split(".")[-2] for file in run.glob("events.out.tfevents.*")
    }  # the process, in the file's name
    assert len(writers) == 1
    assert rows(run)[-1]["rollout/episodes"] == "96"
    manifest = read_manifest(agents.latest_checkpoint(run))
    assert (manifest["ranks"], manifest["num_envs"], manifest["counters"]["num_timesteps"]) == (2, 8, 768)
    assert json.loads((run / "summary.json").read_text())["env_steps"] == 768


def test_a_run_that_one_rank_was_asked_to_stop_resumes_exactly(folder: Path, ranks: list[dict[str, Any]]) -> None:
    """N + N steps equal 2N: every tensor of the last checkpoint, those of both ranks, and the log."""
    assert [each["runs"]["stopped"]["status"] for each in ranks] == [130, 130]
    assert "torchrun --nproc-per-node=2 train.py --resume" in ranks[0]["runs"]["stopped"]["said"]
    assert [each["runs"]["resumed"]["status"] for each in ranks] == [0, 0]
    assert "start new episodes" not in ranks[0]["runs"]["resumed"]["said"]
    one, other = (
        read_tensors(path, read_manifest(path))
        for path in (agents.latest_checkpoint(folder / run) for run in ("whole", "parts"))
    )
    assert one.keys() == other.keys()
    assert {"env/first", "rank1/env/first", "rank1/rng/torch", "rank1/memory/hidden"} <= one.keys()
    for name in one.keys() - {"run/recent_episodes"}:  # holds times
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)  # NaN: no number saved
    clock = ("time/fps", "time/time_elapsed", "time/wall", "time/env_share", "time/memory_share", "time/learn_share")
    for row, expected in zip(rows(folder / "parts"), rows(folder / "whole"), strict=True):
        same = row.keys() - {*clock, "time/iterations"}
        assert {name: row[name] for name in same} == {name: expected[name] for name in same}


def test_the_baseline_and_the_scores_end_on_all_ranks(folder: Path, ranks: list[dict[str, Any]]) -> None:
    assert [each["runs"]["baseline"]["status"] for each in ranks] == [0, 0]
    assert json.loads((folder / "baseline" / "summary.json").read_text())["identity_mean_return"] is not None
    assert steps(folder / "baseline" / "identity") == [64]
    assert "random actions" in ranks[0]["runs"]["baseline"]["said"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("shares", "num_envs is 7, expected a multiple of the 2 ranks"),
        ("minibatches", "expected n_minibatches <= 4"),
        ("name", "lstm"),
        ("sweep", "not torchrun"),
    ],
)
def test_a_mistake_is_told_once(name: str, says: str, folder: Path, ranks: list[dict[str, Any]]) -> None:
    one, other = (each["bad"][name] for each in ranks)
    assert (one["status"], other["status"]) == (2, 2)
    assert one["said"].startswith("error: ")
    assert one["said"].count("\n") == 1
    assert says in one["said"]
    assert other["said"] == ""
    assert not (folder / "bad").exists()
    assert set(BAD) == set(ranks[0]["bad"])


def test_a_learner_of_ones_own_is_imported_on_every_rank(folder: Path, ranks: list[dict[str, Any]]) -> None:
    assert [each["imported"]["status"] for each in ranks] == [0, 0]
    assert "of_ranks: 2.0" in (folder / "imported" / "config.yaml").read_text()


def test_what_one_rank_says_all_hear(ranks: list[dict[str, Any]]) -> None:
    assert [each["any"] for each in ranks] == [[True, False], [True, False]]


# When a rank dies


def dying(run: Path, total: int) -> list[str]:
    """`train.py` and its arguments: rank 1 dies in the middle of the 13th iteration, once."""
    env = ["--env", "rank_cases:Dying-v0", "--env-kwargs", "length=8", "at=100", "--algo", "a2c", "--no-baseline"]
    rest = ["--checkpoint-every", "0", "--run-dir", str(run), "--total-timesteps", str(total)]
    return [str(ROOT / "train.py"), *TRAIN[4:], *env, *rest]


def test_when_a_rank_dies_the_others_say_so_and_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (status, said), (died, _) = start_ranks(*dying(run, 1024))
    assert died == -signal.SIGKILL
    assert status == 2, said
    assert "error: rank 0 of 2 lost contact with another rank" in said
    assert f"torchrun --nproc-per-node=2 train.py --resume {run}" in said
    assert steps(run) == list(range(64, 769, 64))


def test_torchrun_starts_a_run_anew_after_a_rank_has_died_and_one_rank_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint from the beginning of the 13th iteration is whole."""
    run = tmp_path / "run"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    ended = subprocess.run(
        [sys.executable, *launch, *dying(run, 1024)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout
    assert "restarted from step_000000000768" in ended.stdout
    assert "start new episodes" not in ended.stdout
    assert steps(run) == list(range(64, 1025, 64))

    with pytest.raises(SystemExit) as end:
        train.main(["--resume", str(run), "--total-timesteps", "1152", "--no-progress"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "environments start new episodes: the checkpoint has ranks=2 and num_envs=8" in said
    assert "this run ranks=1 and num_envs=8" in said
    assert steps(run) == list(range(64, 1153, 64))
    assert json.loads((run / "summary.json").read_text())["env_steps"] == 1152


def test_a_rank_that_loses_contact_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the status torchrun, and whoever called it, knows that the training is not complete."""

    def lost(*args: Any, **kwargs: Any) -> Any:
        raise distributed.RankLostError("rank 0 of 2 lost contact with another rank (reset)")

    monkeypatch.setattr(agents.MemoryOnPolicyAlgorithm, "learn", lost)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            train.main([*TRAIN, "--run-dir", str(tmp_path / "run")])
    finally:
        signal.signal(signal.SIGTERM, before)  # a rank that is about to end ignores it
    assert end.value.code == 2
    assert "error: rank 0 of 2 lost contact with another rank" in capsys.readouterr().err


def test_a_restart_needs_a_folder_to_find(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(SystemExit) as end:
        train.main(TRAIN)
    assert end.value.code == 2
    assert "without --run-dir" in capsys.readouterr().err


# On one's own


def test_alone_everything_is_the_identity() -> None:
    value = torch.arange(3.0, requires_grad=True)
    assert (distributed.rank(), distributed.size(), distributed.share(7), distributed.own_seed(5)) == (0, 1, 7, 5)
    assert distributed.mean(value) is value
    assert torch.equal(distributed.gather(value), value[None])
    assert distributed.to_first(value)[0] is value
    assert distributed.from_first(lambda: value) is value
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)
    mean, std = distributed.mean_and_std(value)
    assert (mean.item(), std.item()) == (1.0, 1.0)
    assert distributed.moments(torch.ones(3, 4, 2), (0, 1))[2] == 12
    assert distributed.moments(torch.ones(3, 4, 0), (0, 1))[2] == 12  # an entry without numbers was seen as often
    assert distributed.variance(value).item() == pytest.approx(2 / 3)
    assert not torch.distributed.is_initialized()
