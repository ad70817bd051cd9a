"""The command `evaluate.py`, with all that can be wrong in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import evaluate as command
from agents import PPO, make_env
from agents.evaluation.loaded import LoadedAgent
from agents.run.config import Config
from agents.view.session import Session


@pytest.fixture(scope="module")
def run(model: PPO, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as `train.py` leaves it, without the identity agent."""
    folder = tmp_path_factory.mktemp("run")
    model.save(folder / "checkpoints" / "step_32")
    kwargs = {"episode_length": 20}
    Config(env="Engram/InvisibleGoalMaze-v0", env_kwargs=kwargs, memory="gru").save(folder / "config.yaml")
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "200")
    try:
        command.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_table_and_the_file(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, run, "--episodes", "8") == 0
    printed = capsys.readouterr().out
    assert "PPO · 32 steps" in printed
    assert "random" in printed
    assert "--baseline" in printed  # how to get the identity agent, which was not kept
    found = json.loads((run / "evaluation.json").read_text())
    assert found["env_kwargs"] == {"episode_length": 20}
    assert set(found["scores"]) == {"agent", "random"}
    agent = found["scores"]["agent"]
    assert (agent["episodes"], agent["mean_length"]) == (8, 20.0)
    assert (found["wrappers"], found["max_steps"], found["memory_kwargs"]) == ([], 30_000, {"hidden_size": 16})
    assert f"{agent['mean']:.3f}" in printed


def test_scores_of_a_read_only_run_are_printed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    assert call(monkeypatch, tmp_path, "--episodes", "2") == 0
    assert f"not written to {tmp_path}, which is read-only" in capsys.readouterr().out
    assert not (tmp_path / "evaluation.json").exists()


def test_switches_that_may_be_left_out_need_no_value(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, greedy in (
        (["--deterministic"], True),
        (["--no-deterministic"], False),
        (["--deterministic", "True"], True),
        ([], False),
    ):
        assert call(monkeypatch, *words, run, "--episodes", "2", "--no-random") == 0, capsys.readouterr().err
        assert json.loads((run / "evaluation.json").read_text())["deterministic"] is greedy


def test_identity_beside_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    (tmp_path / "summary.json").write_text('{"identity_mean_return": 1.5}')
    assert call(monkeypatch, tmp_path, "--episodes", "2") == 0
    assert "1.500" in capsys.readouterr().out
    assert call(monkeypatch, tmp_path, "--episodes", "2", "--no-identity", "--no-random") == 0
    assert "1.500" not in capsys.readouterr().out
    env = make_env("Engram/InvisibleGoalMaze-v0", 2)
    baseline = PPO("MemoryPolicy", env, policy_kwargs={"memory": "identity"}, n_steps=2, n_minibatches=1)
    baseline.save(tmp_path / "identity")
    assert call(monkeypatch, tmp_path, "--episodes", "2") == 0
    assert set(json.loads((tmp_path / "evaluation.json").read_text())["scores"]) == {"agent", "identity", "random"}
    for file in (tmp_path / "identity").iterdir():
        file.write_bytes(file.read_bytes()[:-10])
    (tmp_path / "evaluation.json").unlink()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("agents.evaluation.command.evaluate", None)  # nothing is played before
        assert call(monkeypatch, tmp_path, "--episodes", "2") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "the memoryless agent: " in message
    assert "--no-identity leaves it out" in message
    assert call(monkeypatch, tmp_path, "--episodes", "2", "--no-identity") == 0


def test_arguments_of_the_memory_may_change_where_the_weights_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kwargs: dict[str, Any] = {"memory": "dnc", "memory_kwargs": {"hidden_size": 8, "slots": 4, "word_size": 3}}
    model = PPO("MemoryPolicy", make_env("Engram/RepeatFirst-v0", 2), policy_kwargs=kwargs, n_steps=4, n_minibatches=1)
    model.save(tmp_path / "checkpoints" / "step_8")
    Config(env="Engram/RepeatFirst-v0", **kwargs).save(tmp_path / "config.yaml")
    words = [tmp_path, "--episodes", "4", "--no-random", "--memory-kwargs"]
    assert call(monkeypatch, *words, "slots=16") == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["memory_kwargs"]["slots"] == 16
    larger = LoadedAgent.open(tmp_path, "cpu", {"slots": 16}).model.policy
    assert larger.initial_state(1)["memory"].shape == (1, 16, 3)
    for name, value in model.policy.state_dict().items():
        assert value.equal(larger.state_dict()[name])
    capsys.readouterr()
    assert call(monkeypatch, *words, "hidden_size=16") == 2
    assert "do not fit this memory" in capsys.readouterr().err
    assert call(monkeypatch, *words, "slot=16") == 2
    assert "unexpected keyword argument 'slot'; it takes" in capsys.readouterr().err


def times_ten(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return gym.wrappers.TransformReward(env, lambda reward: 10 * float(reward))


def test_another_environment_has_the_wrappers_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrappers = [f"{__name__}:times_ten"]
    env = make_env("CartPole-v1", 2, wrappers=wrappers)
    kwargs = {"memory": "identity"}
    PPO("MemoryPolicy", env, policy_kwargs=kwargs, n_steps=4, n_minibatches=1).save(tmp_path / "checkpoints" / "step_8")
    Config(env="CartPole-v1", memory="identity", wrappers=wrappers).save(tmp_path / "config.yaml")
    assert call(monkeypatch, tmp_path, "--episodes", "4", "--env", "CartPole-v0", "--no-random") == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["scores"]["agent"]["mean"] == 10 * found["scores"]["agent"]["mean_length"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM for one process")
def test_sigterm_leaves_no_part_of_a_video(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    count = 0

    def scene(self: Session, *args: str) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            signal.raise_signal(signal.SIGTERM)
        return whole(self, *args)

    whole = Session.scene
    monkeypatch.setattr(Session, "scene", scene)
    assert call(monkeypatch, run, "--video", tmp_path / "x.gif") == 130
    assert count == 3
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_ordinary_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = make_env("CartPole-v1", 2)
    model = PPO("MemoryPolicy", env, policy_kwargs={"memory": "identity"}, n_steps=4, n_minibatches=1)
    model.save(tmp_path / "alone")
    assert call(monkeypatch, tmp_path / "alone", "--episodes", "4", "--env", "CartPole-v1") == 0
    assert "CartPole-v1" in capsys.readouterr().out
    assert not list(tmp_path.glob("**/evaluation.json"))  # there is no run to file it under


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected a run's folder"),
        (["nowhere"], "there is no nowhere"),
        (["RUN", "--episodes", "0"], "--episodes is 0"),
        (["RUN", "--num-envs", "-1"], "--num-envs is -1"),
        (["RUN", "--device", "abacus"], "--device abacus"),
        (["RUN", "--video", "x.avi"], ".mp4 or .gif"),
        (["RUN", "--video", "nowhere/x.gif"], "folder nowhere does not exist"),
        (["RUN", "--watch", "--video", "x.gif"], "at most one of"),
        (["RUN", "--watch"], "no display"),
        (["RUN", "--env", "Engram/Nonsense-v0"], "unknown environment"),
        (["RUN", "--env", "Engram/TMaze-v0"], "observation_space"),
        (["RUN", "--env-kwargs", "size=4"], "size is 4"),
        (["RUN/checkpoints", "--episodes", "2"], "no checkpoint"),
        (["--play", "--env", "Pendulum-v1"], "no keys"),
        (["RUN", "--video-steps", "5"], "--video-steps has no effect without --video"),
        (["RUN", "--ablate-every", "3"], "--ablate-every has no effect without --ablate"),
        (["RUN", "--fps", "3"], "--fps has no effect without --watch or --play or --video"),
        (["RUN", "--errors", "--video", "x.gif"], "--errors is for scores, which --watch, --play, --video"),
        (["RUN", "--ablate", "--saliency", "x.png"], "--ablate is for scores, which --watch, --play, --video"),
        (["RUN", "--episodes", "3", "--saliency", "x.png"], "--episodes is for scores"),
        (["RUN", "--max-steps", "3", "--watch"], "--max-steps is for scores"),
        (["RUN", "--no-identity", "--video", "x.gif"], "--no-identity is for scores"),
        (["--play", "--env", "Engram/TMaze-v0", "--memory-kwargs", "slots=3"], "--memory-kwargs changes the memory of"),
    ],
)
def test_wrong_input_gets_one_line(
    words: list[str], expected: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    assert call(monkeypatch, *(word.replace("RUN", str(run)) for word in words)) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    assert expected in said


def test_a_damaged_checkpoint_gets_one_line(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (run / "checkpoints" / "step_32").iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[:-10])
    words = [sys.executable, command.__file__, str(broken), "--env", "Engram/InvisibleGoalMaze-v0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "damaged" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
