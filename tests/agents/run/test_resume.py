"""Flags beside `--resume` act or are refused, and what a run has written stays true."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_line import SMALL, command, contents, rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import agents
from agents.checkpoint import digest, read_manifest
from agents.registry import learners
from agents.run import callbacks, training
from agents.run.logs import Table, rows_up_to
from envs.repeat_first import RepeatFirst


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 64 steps."""
    folder = tmp_path_factory.mktemp("made") / "run"
    assert command(*SMALL, "--total-timesteps", 64, "--run-dir", folder) == 0
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may change."""
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "run_dir": str(folder)}))
    return folder


def config_of(run: Path) -> dict[str, object]:
    found = yaml.safe_load((run / "config.yaml").read_text())
    assert isinstance(found, dict)
    return found


def kept_by(run: Path) -> dict[str, object]:
    found = read_manifest(agents.latest_checkpoint(run))["config"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("algo", learners.built_in())
def test_every_learner_resumes_as_if_never_stopped(algo: str, tmp_path: Path) -> None:
    words = [*SMALL, "--algo", algo, "--device", "cpu"]
    assert command(*words, "--total-timesteps", 64, "--run-dir", tmp_path / "whole") == 0
    assert command(*words, "--total-timesteps", 32, "--run-dir", tmp_path / "parts") == 0
    assert command("--resume", tmp_path / "parts", "--total-timesteps", 64, "--no-progress") == 0
    whole, parts = (agents.load(tmp_path / run, device="cpu").policy.state_dict() for run in ("whole", "parts"))
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    curves = [[row["train/loss"] for row in rows(tmp_path / run)] for run in ("whole", "parts")]
    assert curves[0] == curves[1]


def test_what_may_change_is_applied_recorded_and_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--learning-rate", "1e-5", "--n-epochs", 2, "--ent-coef", 0.5, "--clip-range", 0.1, "--n-steps", 8]
    assert command("--resume", run, "--total-timesteps", 128, *changes) == 0
    said = capsys.readouterr().out
    assert "resuming at step 64; learning_rate 0.0003 → 1e-05, n_steps 4 → 8, n_epochs 10 → 2, " in said
    assert "total_timesteps 64 → 128" in said
    for name, value in (("learning_rate", 1e-5), ("n_epochs", 2), ("ent_coef", 0.5), ("clip_range", 0.1)):
        assert config_of(run)[name] == value
        assert kept_by(run)[name] == value
    assert [float(row["train/learning_rate"]) for row in rows(run)] == [3e-4] * 4 + [1e-5] * 2
    assert [int(row["time/total_timesteps"]) for row in rows(run)] == [16, 32, 48, 64, 96, 128]
    model = agents.load(agents.latest_checkpoint(run))
    assert (model.n_steps, model.ent_coef) == (8, 0.5)


def test_a_change_that_no_checkpoint_has_yet_stands_by_the_configuration(run: Path) -> None:
    """Killed after config.yaml was written and before the first checkpoint: the record is what the run goes on by."""
    config = config_of(run)
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "gamma": 0.5, "total_timesteps": 80, "anneal": True}))
    assert command("--resume", run) == 0
    assert kept_by(run)["gamma"] == 0.5
    assert kept_by(run)["learning_rate"] == {"$schedule": pytest.approx([3e-4, 3e-5, 1.0])}


def test_a_hyperparameter_that_an_older_checkpoint_lacks_can_be_set(run: Path) -> None:
    file = agents.latest_checkpoint(run) / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["config"]["target_coef"]
    file.write_text(json.dumps(manifest | {"digest": digest(manifest)}))
    assert command("--resume", run, "--total-timesteps", 80, "--target-coef", 0.5) == 0
    assert kept_by(run)["target_coef"] == 0.5
    assert "train/target_loss" in rows(run)[-1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--memory", "lstm"], "--memory is lstm, but RUN is a run with gru"),
        (["--memory-kwargs", "hidden_size=16"], "--memory-kwargs is {'hidden_size': 16}, but RUN"),
        (["--env", "Engram/TMaze-v0"], "--env is Engram/TMaze-v0, but RUN is a run with Engram/RepeatFirst-v0"),
        (["--env-kwargs", "symbols=7"], "observation_space is"),
        (["--algo", "a2c"], "--algo is a2c, but RUN is a run with ppo"),
        (["--num-envs", "8"], "--num-envs is 8, but RUN is a run with 4"),
        (["--seed", "5"], "--seed is 5"),
        (["--reward-scale", "2"], "--reward-scale is 2"),
        (["--n-steps", "0"], "--n-steps is 0"),
        (["--recipe", "copy-dnc"], "--recipe is copy-dnc, but RUN is a run without one, which"),
        (["--init-from", "x"], "--init-from is"),
        (["--run-dir", "elsewhere"], "--run-dir is elsewhere, but --resume continues in RUN"),
        (["--sweep", "repeat-first"], "--sweep and --resume exclude each other"),
        (["--lessons"], "--lessons needs a recipe with an entry follows"),
        (["--gamma", "2"], "--gamma is 2.0, expected"),
        (["--device", "cuda:99"], "--device cuda:99: this machine has"),
    ],
)
def test_what_cannot_change_is_refused_before_anything_is_written(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    before = contents(run)
    assert command("--resume", run, "--total-timesteps", 128, *words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert says.replace("RUN", str(run)) in message
    assert contents(run) == before
    assert command("--resume", run, "--total-timesteps", 80) == 0


def test_a_checkpoint_of_another_agent_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert command(*SMALL, "--algo", "a2c", "--memory", "lstm", "--total-timesteps", 80, "--run-dir", other) == 0
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    before = contents(run)
    capsys.readouterr()
    assert command("--resume", run, "--total-timesteps", 128) == 2
    assert "is of algo A2C, but the run's config.yaml says PPO" in capsys.readouterr().err
    config = config_of(run)
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "algo": "a2c"}))
    assert command("--resume", run, "--total-timesteps", 128) == 2
    assert "is of memory lstm, but the run's config.yaml says gru" in capsys.readouterr().err
    assert contents(run).keys() == before.keys()


def test_a_finished_run_says_so_and_keeps_its_summary(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    assert command("--resume", run) == 0
    assert "complete; to train for longer" in capsys.readouterr().out
    assert contents(run) == before
    assert command("--resume", run, "--eval-episodes", 4) == 0  # another score is asked for
    assert json.loads((run / "summary.json").read_text())["env_steps"] == 64
    assert len(rows(run)) == 4


def test_no_episodes_no_score(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert command(*SMALL, "--total-timesteps", 16, "--eval-episodes", 0, "--run-dir", run) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["mean_return"], summary["env_steps"]) == (None, 16)


def test_wall_time_is_that_of_the_run(run: Path) -> None:
    first = float(rows(run)[-1]["time/wall"])
    assert command("--resume", run, "--total-timesteps", 128) == 0
    walls = [float(row["time/wall"]) for row in rows(run)]
    assert walls == sorted(walls)
    assert walls[-1] > walls[4] >= first > 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["wall_s"] >= walls[-1]
    assert summary["steps_per_s"] == pytest.approx(128 / summary["wall_s"], rel=0.05)


def test_without_the_log_of_earlier_steps_the_speed_is_that_of_later_ones(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged log is to be moved away, as its message says."""
    (run / "progress.csv").unlink()
    assert command("--resume", run, "--eval-episodes", 4) == 0  # nothing is trained
    assert json.loads((run / "summary.json").read_text())["steps_per_s"] is None
    assert re.search(r"64 steps, \d+ episodes\n", capsys.readouterr().out)
    assert command("--resume", run, "--total-timesteps", 128) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["env_steps"] == 128
    assert summary["steps_per_s"] == pytest.approx(64 / summary["wall_s"], rel=0.05)


def test_an_older_checkpoint_sets_later_ones_aside(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are of another future; the newest after that is the resumed run's."""
    older = sorted((run / "checkpoints").glob("step_*"))[0]
    step = int(older.name[5:])
    assert command("--resume", older, "--total-timesteps", step + 16, "--eval-episodes", 4) == 0
    assert "later checkpoints are set aside: set_aside_step_" in capsys.readouterr().out
    assert agents.load(agents.latest_checkpoint(run)).num_timesteps == step + 16
    assert len(list((run / "checkpoints").glob("set_aside_step_*"))) == 2


def test_a_complete_run_continues_from_an_older_checkpoint(run: Path) -> None:
    older = sorted((run / "checkpoints").glob("step_*"))[0]
    assert command("--resume", older) == 0
    assert len(list((run / "checkpoints").glob("set_aside_step_*"))) == 2


def test_a_complete_run_refuses_changes_of_its_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    assert command("--resume", run, "--learning-rate", "1e-5") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "is complete, so this has no effect: learning_rate 0.0003 → 1e-05" in said
    assert contents(run) == before


def test_a_summary_is_that_of_a_complete_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that trains on and is stopped has no score yet; the score before is in another file."""
    before = (run / "summary.json").read_text()
    monkeypatch.setattr(training, "score", lambda *_: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        command("--resume", run, "--total-timesteps", 128)
    assert not (run / "summary.json").exists()
    assert (run / "set_aside_summary.json").read_text() == before


def test_curves_do_not_run_back(run: Path) -> None:
    """What came after the checkpoint is purged in TensorBoard, as it is in progress.csv."""
    for later in sorted((run / "checkpoints").glob("step_*"))[1:]:
        shutil.rmtree(later)
    assert command("--resume", run, "--total-timesteps", 96) == 0
    curves = EventAccumulator(str(run)).Reload()
    steps = [event.step for event in curves.Scalars("rollout/ep_rew_mean")]
    assert steps == [16, 32, 48, 64, 80, 96]


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is not there")
def test_the_second_process_on_a_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = f"from filelock import FileLock; l = FileLock({str(run / '.lock')!r}); l.acquire(); print(1); input()"
    holder = subprocess.Popen([sys.executable, "-uc", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    before = contents(run)
    try:
        assert command("--resume", run, "--total-timesteps", 128) == 2
        assert "another process is training in" in capsys.readouterr().err
        assert contents(run) == before
    finally:
        holder.kill()
        holder.communicate()
    assert command("--resume", run, "--total-timesteps", 80) == 0


@pytest.mark.parametrize("option", ["--resume", "--recipe", "--sweep", "--run-dir", "--init-from"])
@pytest.mark.parametrize("joined", [True, False])
def test_an_empty_option_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, joined: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*([f"{option}="] if joined else [option, ""])) == 2
    assert f"error: {option} is empty, expected a value" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_names_of_folders_are_portable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "worlds_of_mine.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):  # within a second
        words = [*SMALL[4:], "--env", "worlds_of_mine:CartPole-v1", "--total-timesteps", 16, "--eval-episodes", 0]
        assert command(*words) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(names) == 2
    assert all(name.startswith("worlds_of_mine-CartPole-v1-gru-ppo-0-") for name in names)
    assert not any(set(name) & set('<>:"/\\|?*') for name in names)


def test_a_table_keeps_its_rows_wherever_it_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New columns replace the file as a whole; half a row at the end is left out when the run is resumed."""
    table = Table(tmp_path / "progress.csv", [])
    table.write({"time/total_timesteps": 16, "a": 0.5}, {})
    table.write({"time/total_timesteps": 32, "b": 'x,"y"'}, {})
    monkeypatch.setattr("agents.run.logs.replace_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        table.write({"time/total_timesteps": 48, "c": 1}, {})
    assert [row["a"] for row in rows(tmp_path)] == ["0.5", ""]
    with open(tmp_path / "progress.csv", "a") as file:
        file.write("48,0.7")
    assert rows_up_to(tmp_path, 100) == [
        {"time/total_timesteps": "16", "a": "0.5"},
        {"time/total_timesteps": "32", "b": 'x,"y"'},
    ]
    assert len(rows_up_to(tmp_path, 16)) == 1


@pytest.mark.parametrize(
    "damage", [b"time/total_timesteps\nx\n", b"time/total_timesteps\n\xff\n", b"garbage\n", b"rollout/return,ti"]
)
def test_a_damaged_table_is_named(run: Path, capsys: pytest.CaptureFixture[str], damage: bytes) -> None:
    (run / "progress.csv").write_bytes(damage)
    before = contents(run)
    assert command("--resume", run, "--total-timesteps", 128) == 2
    assert f"{run / 'progress.csv'} is damaged" in capsys.readouterr().err
    assert contents(run) == before


def test_a_run_that_cannot_be_resumed_says_what_can_be_used(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = agents.latest_checkpoint(run)
    manifest = (newest / "manifest.json").read_text()
    (newest / "manifest.json").write_text("{")
    assert command("--resume", run, "--total-timesteps", 128) == 2
    said = capsys.readouterr().err
    assert "manifest.json is damaged" in said
    assert "step_000000000048 is older and intact" in said
    (newest / "manifest.json").write_text(manifest)
    (run / "config.yaml").unlink()
    assert command("--resume", run) == 2
    assert f"{run} has no config.yaml, so it cannot be resumed: start a new run" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit of a file's size")
def test_a_full_disk_gives_no_traceback_of_tensorboard(tmp_path: Path) -> None:
    """Its writer thread meets the error first; the next write raises it in the main thread."""
    words = [*SMALL, "--total-timesteps", 64 * 64, "--run-dir", str(tmp_path / "run")]
    program = f"""
import resource
from command_line import command
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
raise SystemExit(command(*{words!r}))
"""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, Path(training.__file__).parents[2]))),
    }
    end = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False)
    assert end.returncode == 2
    assert "Traceback" not in end.stderr
    assert "File too large" in end.stderr


def test_the_state_of_the_checkout_is_read_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`git status` would write the index anew after a file's time has changed, and leave its lock if it is killed."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    file, index = tmp_path / "file.py", tmp_path / ".git" / "index"
    file.write_text("pass\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    os.utime(file, (1, 1))
    before = index.read_bytes()
    monkeypatch.setattr(callbacks, "__file__", str(file))
    assert re.fullmatch("commit [0-9a-f]{40}", callbacks.git_state())
    assert index.read_bytes() == before


def test_a_folder_whose_run_failed_at_once_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*SMALL, "--total-timesteps", 32, "--run-dir", tmp_path / "run"]

    def fail(*args: object) -> None:
        raise RuntimeError("not yet")

    monkeypatch.setattr(RepeatFirst, "_begin", fail)
    assert command(*words) == 2
    assert (tmp_path / "run" / "config.yaml").is_file()
    monkeypatch.undo()
    assert command(*words) == 0


def test_other_evaluation_steps_score_again(run: Path) -> None:
    before = contents(run)
    assert command("--resume", run, "--eval-steps", 2) == 0
    assert config_of(run)["eval_steps"] == 2
    assert contents(run) != before


def test_the_baseline_has_the_agents_steps_if_the_total_was_lowered(run: Path) -> None:
    assert command("--resume", run, "--total-timesteps", 32, "--baseline") == 0
    baseline = agents.load(agents.latest_checkpoint(run / "identity"), device="cpu")
    assert baseline.num_timesteps == 64


def test_one_evaluation_episode_gives_valid_json(tmp_path: Path) -> None:
    words = [*SMALL, "--total-timesteps", 16, "--eval-episodes", 1, "--run-dir", tmp_path / "run"]
    assert command(*words) == 0

    def refuse(name: str) -> None:
        raise ValueError(name)

    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=refuse)
    assert summary["ci95"] is None
