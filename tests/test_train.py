"""train.py as a person meets it: results, interruptions, resumption and mistakes."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import agents
import evaluate
import train
from agents import PPO, make_env
from agents.run import training
from agents.run.parsing import parse

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--env", "Engram/RepeatFirst-v0", "--env-kwargs", "length=8", "--num-envs", "8", "--n-steps", "8"]
SMALL += ["--memory", "gru", "--memory-kwargs", "hidden_size=16", "--eval-episodes", "16", "--no-progress"]
SMALL += ["--panels-every", "0"]


def command(*words: str) -> int:
    """The command's exit status."""
    with pytest.raises(SystemExit) as end:
        train.main(list(words))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_threads_that_wait_give_their_core_away(script: str) -> None:
    """OpenMP reads the variables as torch is loaded, so the script sets them before; what the user set stays."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    stop = "sys.modules['torch'] = None; "  # importing it fails: what was set by then counts
    run = f"import os, runpy, sys; {stop}sys.excepthook = lambda *_: print(*map(os.environ.get, {names})); "
    run += f"runpy.run_path({script!r})"
    for given, expected in (
        ({}, "PASSIVE 2000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
    ):
        environment = {name: value for name, value in os.environ.items() if name not in names} | given
        done = subprocess.run([sys.executable, "-c", run], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_time(folder: Path) -> list[dict[str, str]]:
    """The log without what a clock writes."""
    clock = ("time/fps", "time/time_elapsed", "time/wall", "time/env_share", "time/memory_share", "time/learn_share")
    own = (*clock, "time/iterations")  # counts from the start of the command
    return [{name: value for name, value in row.items() if name not in own} for row in rows(folder)]


def test_a_run_leaves_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "my run"
    assert command(*SMALL, "--total-timesteps", "640", "--run-dir", str(run)) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) >= {
        "mean_return",
        "ci95",
        "identity_mean_return",
        "env_steps",
        "episodes",
        "wall_s",
        "steps_per_s",
    }
    assert summary["env_steps"] == 640
    assert summary["episodes"] == 640 // 8
    assert 0 <= summary["mean_return"] <= 1
    assert 0 <= summary["identity_mean_return"] <= 1
    assert yaml.safe_load((run / "config.yaml").read_text())["memory_kwargs"] == {"hidden_size": 16}
    assert [int(row["time/total_timesteps"]) for row in rows(run)] == list(range(64, 641, 64))
    assert list(run.glob("events.out.tfevents.*"))
    assert agents.load(agents.latest_checkpoint(run)).num_timesteps == 640
    assert agents.load(agents.latest_checkpoint(run / "identity")).policy.memory_name == "identity"
    advice = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("watch it:", "curves:"))]
    assert len(advice) == 2
    assert all(str(run) in shlex.split(line) for line in advice)  # can be pasted into a shell


def test_flags_go_before_the_recipe_and_the_recipe_before_defaults() -> None:
    recipe = yaml.safe_load((ROOT / "recipes" / "maze-ppo.yaml").read_text())
    config, _ = parse(["--memory-kwargs", "heads=2", "--gamma", "0.9"])
    assert config.memory_kwargs == {**recipe["memory_kwargs"], "heads": 2}
    assert (config.learner.gamma, config.learner.reward_scale) == (0.9, recipe["reward_scale"])
    other, _ = parse(["--memory", "lstm"])  # the arguments of another memory are not for this one
    assert (other.memory_kwargs, other.learner.reward_scale) == ({}, recipe["reward_scale"])
    plain, _ = parse(["--env", "CartPole-v1", "--memory", "lstm"])
    assert (plain.recipe, plain.learner.reward_scale) == (None, 1.0)


def test_a_second_run_does_not_write_over_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("env: x\n")
    (tmp_path / "checkpoints").mkdir()
    assert command(*SMALL, "--run-dir", str(tmp_path)) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert command(*SMALL, "--run-dir", str(tmp_path / "config.yaml")) == 2
    said = "".join(capsys.readouterr().err.split())
    assert "config.yaml,whichisafile,expectedafolder:chooseanother--run-dir" in said


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, algo: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = [*SMALL, "--algo", algo, "--no-baseline", "--anneal"]
    assert command(*common, "--total-timesteps", "768", "--run-dir", str(whole)) == 0

    def stop_half_way(self: agents.MemoryOnPolicyAlgorithm, iteration: int = 0) -> None:
        dump(self, iteration)
        self.stop_requested = self.num_timesteps == 384

    dump = agents.MemoryOnPolicyAlgorithm.dump_logs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agents.MemoryOnPolicyAlgorithm, "dump_logs", stop_half_way)
        assert command(*common, "--total-timesteps", "768", "--run-dir", str(parts)) == 130
    assert len(rows(parts)) == 6
    assert command("--resume", str(parts), "--no-progress") == 0
    assert without_time(parts) == without_time(whole)
    assert json.loads((parts / "summary.json").read_text())["episodes"] == 96


def start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoint(run: Path, ended: Callable[[], object]) -> None:
    """Until a checkpoint beyond the first is there; a busy machine takes minutes to import torch."""
    deadline = time.monotonic() + 300
    while len(list(run.glob("checkpoints/step_*/manifest.json"))) < 2:
        assert not ended()
        assert time.monotonic() < deadline
        time.sleep(0.05)


ENDLESS = [*SMALL, "--no-baseline", "--total-timesteps", "100_000_000", "--checkpoint-every", "0"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(*ENDLESS, "--run-dir", str(run))
    wait_for_checkpoint(run, lambda: process.poll() is not None and process.communicate()[0])
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--resume {run}" in output.replace("\n", "")
    assert "Traceback" not in output
    stopped_at = int(rows(run)[-1]["time/total_timesteps"])
    assert agents.load(agents.latest_checkpoint(run)).num_timesteps == stopped_at


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process is forked")
def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from fault_children import Child

    run = tmp_path / "run"
    process = Child(lambda: train.main([*ENDLESS, "--run-dir", str(run)]), tmp_path)
    wait_for_checkpoint(run, process.ended)
    process.send(signal.SIGKILL)
    assert process.wait(60).status == -signal.SIGKILL
    kept = agents.load(agents.latest_checkpoint(run)).num_timesteps
    assert kept > 0
    assert command("--resume", str(run), "--total-timesteps", str(kept + 640), "--no-progress") == 0
    steps = [int(row["time/total_timesteps"]) for row in rows(run)]
    assert steps == list(range(64, kept + 641, 64))  # nothing before the checkpoint is lost, nothing is there twice


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--env", "Engram/InvisibleGoal-v0"], "Engram/InvisibleGoalMaze-v0"),
        (["--memory", "ltsm"], "lstm"),
        (["--algo", "dqn"], "ppo"),
        (["--recipe", "none-such"], "maze-ppo"),
        (["--memory", "lstm", "--memory-kwargs", "heads=3"], "heads"),
        (["--env-kwargs", "colour=red"], "colour"),
        (["--env-kwargs", "size=8"], "odd"),
        (["--num-envs", "0"], "--num-envs is 0"),
        (["--resume", "no/such/run"], "no/such/run"),
        (["--init-from", "no/such/run"], "no/such/run"),
        (["--lessons"], "a recipe with an entry follows"),
        (["--env-kwargs", "num_envs=3"], "num_envs, which cannot be given there"),
        (["--env-kwargs", "wrappers=x"], "env_kwargs.wrappers cannot be given here"),
        (["--algo", "a2c", "--n-epochs", "9"], "--n-epochs has no effect on a2c"),
        (["--trials", "9"], "--trials has no effect without --sweep"),
        (["--fast", "graph"], "only CUDA has graphs"),
        (["--device", "cpu:3"], "--device cpu:3: expected"),
        (["--learning-rate", "1e10"], "--learning-rate is 10000000000.0, expected a number from 0 to 10"),
    ],
)
def test_a_mistake_gets_one_line_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert says in message
    assert not (tmp_path / "runs").exists()


def test_a_nan_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from envs.repeat_first import RepeatFirst

    step = RepeatFirst.step

    def poisoned(self: RepeatFirst, action):  # type: ignore[no-untyped-def]
        obs, reward, *rest = step(self, action)
        self.poison_in = getattr(self, "poison_in", 40) - 1  # type: ignore[attr-defined]
        return (obs, reward * float("nan") if self.poison_in < 0 else reward, *rest)  # type: ignore[attr-defined]

    monkeypatch.setattr(RepeatFirst, "step", poisoned)
    run = tmp_path / "run"
    assert command(*SMALL, "--no-baseline", "--checkpoint-every", "0", "--run-dir", str(run)) == 2
    message = capsys.readouterr().err
    assert "reward is not finite after 328 environment steps" in message  # step 41 of 8 copies
    assert "step_000000000320" in message
    assert agents.load(agents.latest_checkpoint(run)).num_timesteps == 320


def test_wrappers_encoder_and_layers_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept in config.yaml; a class of the user's own is found again by evaluate and --resume."""
    (tmp_path / "my_parts.py").write_text(
        "import gymnasium\nfrom stable_baselines3.common.torch_layers import FlattenExtractor\n"
        "class Hidden(gymnasium.ObservationWrapper):\n"
        "    def __init__(self, env):\n"
        "        super().__init__(env)\n"
        "        self.observation_space = gymnasium.spaces.Box(-9.0, 9.0, (2,))\n"
        "    def observation(self, obs):\n        return obs[[0, 2]]\n"
        "class Mine(FlattenExtractor):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    words = "--env CartPole-v1 --memory gru --memory-kwargs hidden_size=8 --wrappers my_parts:Hidden --net-arch 16 8"
    words += " --encoder my_parts:Mine --no-normalize-images --num-envs 2 --n-steps 8 --n-minibatches 1 --no-baseline"
    words += " --vector async --total-timesteps 16 --eval-episodes 2 --no-progress --panels-every 0 --run-dir run"
    config, _ = parse(words.split())
    assert (config.wrappers, config.net_arch, config.vector) == (["my_parts:Hidden"], [16, 8], "async")
    assert command(*words.split()) == 0
    model = agents.load("run", policy_kwargs=config.network_kwargs())
    assert type(model.policy.features_extractor).__name__ == "Mine"
    assert model.policy.mlp_extractor.latent_dim_pi == 8
    assert not model.policy.normalize_images
    assert model.policy.observation_space.shape == (2,)
    assert command("--resume", "run", "--total-timesteps", "32", "--no-progress") == 0
    evaluate.main(["run", "--video", "it.gif", "--video-steps", "3"])  # which draws before the first reset
    assert Path("it.gif").stat().st_size > 1000


def test_an_environment_that_draws_nothing_is_shown_without_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain_world.py").write_text(
        "import gymnasium\n"
        "class Plain(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Discrete(3)\n    action_space = gymnasium.spaces.Discrete(2)\n"
        "    def __init__(self):\n        pass\n"
        "    def reset(self, *, seed=None, options=None):\n        self.time = 0\n        return 0, {}\n"
        "    def step(self, action):\n"
        "        self.time += 1\n        return self.time % 3, 1.0, self.time == 4, False, {}\n"
        "gymnasium.register('Plain-v0', Plain)\n"
    )
    monkeypatch.chdir(tmp_path)
    words = (
        "--env plain_world:Plain-v0 --memory gru --memory-kwargs hidden_size=8 --num-envs 2 --n-steps 8 --no-baseline"
    )
    words += " --n-minibatches 1 --total-timesteps 16 --eval-episodes 0 --no-progress --panels-every 0 --run-dir run"
    assert command(*words.split()) == 0
    evaluate.main(["run", "--video", "it.gif", "--video-steps", "3"])
    assert Path("it.gif").stat().st_size > 1000


@pytest.mark.parametrize(("load", "threads", "said"), [(0.1, 1, True), (3.0, 1, False), (0.1, 2, False)])
def test_idle_cores_are_pointed_out(monkeypatch: pytest.MonkeyPatch, load: float, threads: int, said: bool) -> None:
    monkeypatch.setattr(training.os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(training.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(training.torch, "get_num_threads", lambda: threads)
    model = PPO("MemoryPolicy", make_env("Engram/RepeatFirst-v0", num_envs=2), n_steps=4)
    assert ("--threads 2 is faster" in training.describe_training(model, Path("run"))) == said
