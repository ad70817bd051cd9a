"""Sweeps: trials that are run, compared, given up, interrupted, shared between processes, and reported.

Most tests have `sweep_stand_in.py` in the place of `train.py`, which takes seconds to start; one sweep is real.
"""

from __future__ import annotations

import csv
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import matplotlib
import optuna
import pytest
import yaml
from optuna.trial import TrialState
from rich.console import Console
from sweep_spaces import SPACE, space_file

import train
from agents import latest_checkpoint, load
from agents.sweep import driver, launch, report, study, trial
from agents.sweep.space_file import load_space

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
STAND_IN = HERE / "sweep_stand_in.py"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which take a second: two tests draw them."""
    monkeypatch.setattr(report, "draw", lambda *_: None)
    monkeypatch.setattr(trial, "CHILD", STAND_IN)
    monkeypatch.setattr(trial, "POLL_S", 0.02)
    study.silence_optuna()


def prepared(folder: Path, jobs: int = 1, kept: str | None = None, **entries: Any) -> driver.Sweep:
    """A sweep of the stand-in, ready to run."""
    space = load_space(str(space_file(folder, **entries)))
    config = space.defaults({})
    where = kept or study.default_storage(folder)
    made = study.open_study(space, config, where)
    return driver.Sweep(space, config, made, where, folder, Console(quiet=True), jobs=jobs)


def states(sweep: driver.Sweep) -> list[str]:
    return [one.state.name for one in sweep.study.trials]


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        train.main(list(words))
    assert isinstance(end.value.code, int)
    return end.value.code


# Trials


def test_a_trial_is_the_mean_of_its_seeds_and_reports_it_point_by_point(tmp_path: Path, stand_in: None) -> None:
    sweep = prepared(tmp_path, seeds=[0, 2], trials=1, space={"learning_rate": {"low": 1.0, "high": 1.0}})
    assert sweep.run() is False
    (one,) = sweep.study.trials
    assert one.value == pytest.approx(2.0)  # of 1 and 3
    assert one.user_attrs["results"] == pytest.approx({"0": 1.0, "2": 3.0})
    first, both = [0.2, 0.4, 0.6, 0.8, 1.0], [0.4, 0.8, 1.2, 1.6, 2.0]
    assert one.intermediate_values == pytest.approx(dict(enumerate(first + both, start=1)))
    for seed in (0, 2):
        assert yaml.safe_load((tmp_path / f"trial-0000-seed-{seed}" / "config.yaml").read_text())["seed"] == seed


def test_a_bad_trial_is_pruned_in_its_first_seed(tmp_path: Path, stand_in: None) -> None:
    pruner = {"name": "median", "n_startup_trials": 2, "n_warmup_steps": 2}
    fixed = {"vf_coef": 0.0, "ent_coef": 0.0, "max_grad_norm": 9.0, "memory": "gru", "total_timesteps": 100}
    sweep = prepared(tmp_path, seeds=[0, 1], pruner=pruner, fixed=fixed)
    for rate in (0.8, 0.6, 0.1):
        sweep.study.enqueue_trial({"learning_rate": rate})
    sweep.run()
    assert states(sweep) == ["COMPLETE", "COMPLETE", "PRUNED"]
    bad = sweep.study.trials[2]
    assert 2 <= max(bad.intermediate_values) <= 5  # after the warm-up, in the first seed
    run = tmp_path / "trial-0002-seed-0"
    assert not (run / "summary.json").exists()
    assert list(run.glob("checkpoints/*/manifest.json"))  # it was asked to stop, and could be gone on with
    assert not (tmp_path / "trial-0002-seed-1").exists()
    assert report.ranked(sweep.study)[0].params == {"learning_rate": 0.8}


def test_a_failed_trial_is_counted_and_the_sweep_goes_on(tmp_path: Path, stand_in: None) -> None:
    searched = {"ent_coef": [0.0, 1.0, 9.0]}
    sweep = prepared(tmp_path, space=searched, fixed={"vf_coef": 0.0, "learning_rate": 0.5, "memory": "gru"}, trials=3)
    for value in (1.0, 9.0, 0.0):
        sweep.study.enqueue_trial({"ent_coef": value})
    sweep.run()
    assert states(sweep) == ["FAIL", "FAIL", "COMPLETE"]
    with open(tmp_path / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["error"] for row in rows] == [
        "trial-0000-seed-0: made to fail",
        "trial-0001-seed-0: ended by signal 9",
        "",
    ]
    assert [row["value"] for row in rows] == ["", "", "0.5"]


def test_a_sweep_whose_trials_all_fail_ends(tmp_path: Path, stand_in: None) -> None:
    sweep = prepared(tmp_path, fixed={"vf_coef": 0.0, "ent_coef": 1.0, "memory": "gru"}, trials=50)
    with pytest.raises(ValueError, match="the first 5 trials failed, the last with: trial-0004-seed-0: made to fail"):
        sweep.run()


def test_a_task_s_score_may_be_what_is_minimized(tmp_path: Path, stand_in: None) -> None:
    sweep = prepared(tmp_path, objective="task/errors", direction="minimize")
    for rate in (0.1, 0.9, 0.4):
        sweep.study.enqueue_trial({"learning_rate": rate})
    sweep.run()
    assert [one.number for one in report.ranked(sweep.study)] == [1, 2, 0]
    assert report.ranked(sweep.study)[0].value == pytest.approx(9.1)
    assert sweep.study.trials[1].intermediate_values[5] == pytest.approx(9.1)


def test_a_grid_is_run_once_and_whole(tmp_path: Path, stand_in: None) -> None:
    searched = {
        "algo": ["ppo", "a2c"],
        "clip_range": {"low": 0.1, "high": 0.3, "step": 0.1, "when": {"algo": "ppo"}},
        "learning_rate": [0.5, 1.0],
    }
    sweep = prepared(tmp_path, jobs=2, space=searched, sampler="grid", trials=100)
    sweep.run()
    tried = [tuple(sorted(one.params.items())) for one in sweep.study.trials]
    assert len(tried) == len(set(tried)) == 2 * (3 + 1) == sweep.space.size()


# Interruption and sharing


def test_ctrl_c_leaves_a_study_that_goes_on(tmp_path: Path, stand_in: None) -> None:
    fixed = {"vf_coef": 0.0, "ent_coef": 0.0, "max_grad_norm": 8.0, "memory": "gru"}
    waiting = {"fixed": fixed, "seeds": [0, 1], "trials": 2}
    sweep = prepared(tmp_path, **waiting)

    def interrupt_the_second_seed() -> None:
        while not (tmp_path / "trial-0000-seed-1" / "starts.txt").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_the_second_seed).start()
    assert sweep.run() is True
    assert states(sweep) == ["WAITING"]
    drawn = sweep.study.trials[0].params
    again = prepared(tmp_path, **waiting)
    assert again.run() is False
    assert states(again) == ["COMPLETE", "COMPLETE"]
    assert again.study.trials[0].params == drawn
    starts = [(tmp_path / f"trial-0000-seed-{seed}" / "starts.txt").read_text().split() for seed in (0, 1)]
    assert starts[0] == ["0"]  # complete: not run again
    assert len(starts[1]) == 2  # gone on with from its checkpoint
    assert int(starts[1][1]) > 0


def test_what_a_dead_process_left_is_taken_up(tmp_path: Path, stand_in: None) -> None:
    sweep = prepared(tmp_path, trials=1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = sweep.study.ask()
    values = sweep.space.suggest(left)
    study.renew(sweep.study, left._trial_id)
    frozen = sweep.study.trials[0]
    assert not study.is_abandoned(frozen)
    lease = frozen.user_attrs["lease"]
    for change, gone in (
        ({"pid": dead.pid}, True),
        ({"pid": dead.pid, "host": "elsewhere"}, False),  # no knowing, but for the time
        ({"host": "elsewhere", "time": time.time() - study.GRACE_S - 1}, True),
    ):
        left.set_user_attr("lease", lease | change)
        assert study.is_abandoned(sweep.study.trials[0]) is gone, change
    left.set_user_attr("lease", lease | {"pid": dead.pid})
    sweep.run()
    assert states(sweep) == ["COMPLETE"]
    assert sweep.study.trials[0].params == values
    assert sweep.study.trials[0].user_attrs["restarts"] == 1


def test_a_trial_that_kills_its_process_again_and_again_has_failed(tmp_path: Path, stand_in: None) -> None:
    sweep = prepared(tmp_path)
    sweep.study.ask()
    for _ in range(study.MAX_RESTARTS):
        study.requeue_trial(sweep.study, 0)
        assert states(sweep) == ["WAITING"]
    study.requeue_trial(sweep.study, 0)
    assert states(sweep) == ["FAIL"]


def test_a_run_does_not_outlive_its_sweep(tmp_path: Path) -> None:
    module = runpy.run_path(str(trial.CHILD))
    program = "import runpy, sys; runpy.run_path(sys.argv[1])['watch'](int(sys.argv[2]))"
    parent = "import os, subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {}, {}, str(os.getpid())]).pid)"
    wait = "; sys.stdout.flush(); import time; time.sleep(60)"
    words = [sys.executable, "-c", parent.format(repr(program), repr(str(trial.CHILD))) + wait]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as sweep:
        assert sweep.stdout is not None
        child = int(sweep.stdout.readline())
        assert study.alive(child)
        sweep.kill()
    deadline = time.monotonic() + 30 * module["POLL_S"]
    while study.alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not study.alive(child)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_two_processes_share_a_journal(tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from fault_children import Child

    fixed = {"vf_coef": 0.02, "ent_coef": 0.0, "env": "Engram/RepeatFirst-v0"}
    file = space_file(tmp_path, trials=7, fixed=fixed, pruner="none")
    words = ["--sweep", str(file), "--run-dir", str(tmp_path), "--memory", "gru"]
    both = [Child(lambda: train.main(words), ROOT, memory=0) for _ in range(2)]
    outcomes = [process.wait(300) for process in both]
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    said = [outcome.output for outcome in outcomes]
    space = load_space(str(file))
    made = optuna.load_study(study_name=space.name, storage=study.open_storage(study.default_storage(tmp_path)))
    trials = made.get_trials(states=[state for state in TrialState if state != TrialState.WAITING])
    assert [one.state for one in trials] == [TrialState.COMPLETE] * 7
    assert len(made.trials) <= 8  # both may have asked for the last one: then one more waits
    for one in trials:  # each by one of the two, and once
        assert (tmp_path / f"trial-{one.number:04d}-seed-0" / "starts.txt").read_text() == "0\n"
        assert sum(f"trial {one.number} complete" in words for words in said) == 1


def test_of_two_that_ask_for_the_last_trial_one_gets_it(tmp_path: Path, stand_in: None) -> None:
    sweep = prepared(tmp_path, trials=1)
    sweep.n_trials, ask = 1, sweep.study.ask

    def ask_second() -> optuna.Trial:
        ask()  # the other one, after ours had counted
        return ask()

    sweep.study.ask = ask_second  # type: ignore[method-assign]
    assert sweep.next_job() is None
    assert states(sweep) == ["RUNNING", "WAITING"]  # a later command that wants two takes it
    sweep.n_trials, sweep.study.ask = 2, ask  # type: ignore[method-assign]
    job = sweep.next_job()
    assert job is not None
    assert job.number == 1


def test_a_database_will_do(tmp_path: Path, stand_in: None) -> None:
    sweep = prepared(tmp_path, jobs=2, trials=2, kept=f"sqlite:///{tmp_path}/study.db")
    sweep.run()
    assert states(sweep) == ["COMPLETE"] * 2
    assert not (tmp_path / "study.journal").exists()


def test_a_study_is_of_one_space(tmp_path: Path) -> None:
    prepared(tmp_path)
    prepared(tmp_path, trials=50, pruner="none")  # these may change
    with pytest.raises(ValueError, match=r"searches another space: fixed.vf_coef \(there 0.0, here 0.5\)"):
        prepared(tmp_path, fixed=yaml.safe_load(SPACE)["fixed"] | {"vf_coef": 0.5})
    with pytest.raises(ValueError, match=r"searches another space: space.learning_rate"):
        prepared(tmp_path, space={"learning_rate": {"low": 0.0, "high": 2.0}})


# What comes out


def test_pictures_are_drawn_of_any_number_of_trials(tmp_path: Path) -> None:
    study.silence_optuna()
    made = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="maximize")
    space = load_space(str(space_file(tmp_path)))
    style = dict(matplotlib.rcParams)
    report.draw(made, space, tmp_path)
    assert {file.name for file in tmp_path.glob("*.png")} == {"history.png", "curves.png"}
    made.optimize(lambda one: one.suggest_float("gamma", 0, 1) + 0.01 * one.suggest_float("vf_coef", 0, 1), n_trials=30)
    report.draw(made, space, tmp_path)
    assert (tmp_path / "importance.png").stat().st_size > 1000
    assert dict(matplotlib.rcParams) == style


def test_a_small_sweep_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = {"env": "Engram/RepeatFirst-v0", "env_kwargs": {"length": 4}, "memory": "gru", "eval_episodes": 8}
    fixed |= {"num_envs": 8, "n_steps": 8, "total_timesteps": 256}
    searched = {"learning_rate": {"low": "1e-4", "high": "1e-2", "log": True}, "memory_kwargs.hidden_size": [4, 8]}
    file, folder = space_file(tmp_path, trials=2, fixed=fixed, space=searched), tmp_path / "sweep"
    assert command("--sweep", str(file), "--run-dir", str(folder), "--jobs", "2", "--gamma", "0.9") == 0
    assert "best of 2 trials by return" in capsys.readouterr().out
    names = {"best.yaml", "trials.csv", "curves.png", "history.png", "study.journal"}
    assert names <= {path.name for path in folder.iterdir()}
    with open(folder / "trials.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["state"] for row in rows] == ["complete"] * 2
    for row in rows:
        run = folder / f"trial-000{row['trial']}-seed-0"
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["learning_rate"] == float(row["learning_rate"])
        assert config["memory_kwargs"] == {"hidden_size": int(row["memory_kwargs.hidden_size"])}
        assert config["gamma"] == 0.9
        assert load(latest_checkpoint(run)).num_timesteps == 256
    best = max(rows, key=lambda row: float(row["value"]))
    options = ["--recipe", str(folder / "best.yaml"), "--run-dir", str(tmp_path / "best"), "--no-baseline"]
    assert command(*options, "--no-progress") == 0
    config = yaml.safe_load((tmp_path / "best" / "config.yaml").read_text())
    assert (config["learning_rate"], config["gamma"]) == (float(best["learning_rate"]), 0.9)
    assert config["memory_kwargs"] == {"hidden_size": int(best["memory_kwargs.hidden_size"])}
    value = float(best["value"])  # the same seed and machine: the same run
    assert yaml.safe_load((tmp_path / "best" / "summary.json").read_text())["mean_return"] == pytest.approx(value)


def test_ray_runs_trials(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    study.silence_optuna()
    small = {
        "memory": "gru",
        "num_envs": 2,
        "n_steps": 8,
        "n_minibatches": 1,
        "total_timesteps": 64,
        "eval_episodes": 2,
    }
    sweep = prepared(tmp_path, trials=1, fixed={"env": "Engram/RepeatFirst-v0", "env_kwargs": {"length": 4}, **small})
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        sweep.run_one, room = launch.on_ray(sweep.config)
        assert room == 1
        sweep.run()
    finally:
        ray.shutdown()
    assert states(sweep) == ["COMPLETE"]
    assert load(latest_checkpoint(tmp_path / "trial-0000-seed-0")).num_timesteps == 64
