"""One trial: a run of `train.py` per seed, one after the other, until it is pruned.

A trial reports its curve at the same points as all others. Report `i * reports + k` is the k-th point of the i-th seed;
its value is the mean, over the seeds so far, of their curves at that point. So trials are compared after equal seeds
and steps, and a pruned trial need not run further seeds.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.trial import Trial, TrialState

from agents.run.config import Config
from agents.run.logs import STEP
from agents.sweep.space import Space
from agents.sweep.study import fail, make_pruner, open_storage

CHILD = Path(__file__).with_name("child.py")
"""The script that runs a seed."""
POLL_S = 0.5
STOP_S = 120.0
"""Seconds for a run to finish its iteration and write a checkpoint after a stop is requested."""

Curve = list[tuple[int, float]]
"""Steps and values, in order."""


@dataclass(frozen=True)
class Job:
    """Everything a process needs to run one trial, on any machine."""

    space: Space
    config: Config
    """The trial's configuration, without `seed` and `run_dir`."""
    storage: str
    trial_id: int
    number: int
    folder: Path
    """The sweep's folder."""

    @property
    def recipe(self) -> Path:
        """The file for the trial's configuration."""
        return self.folder / f"trial-{self.number:04d}.yaml"

    def run_dir(self, seed: int) -> Path:
        """The folder of one seed's run."""
        return self.folder / f"trial-{self.number:04d}-seed-{seed}"


class Stop(threading.Event):
    """A flag set from another thread: the trial writes a checkpoint and stops; with `now`, it stops at once."""

    now = False


class _Stopped(Exception):
    pass


def run_trial(job: Job, stop: Stop) -> None:
    """Runs the seeds without a result, each from its last checkpoint if any, and reports the result to the study.

    Ctrl-C in this thread has the effect of `stop`: the trial returns to the queue.
    """
    study = optuna.load_study(
        study_name=job.space.name,
        storage=open_storage(job.storage),
        sampler=optuna.samplers.RandomSampler(),  # values are already drawn
        pruner=make_pruner(job.space),
    )
    try:
        value = _train(job, Trial(study, job.trial_id), stop)
        study.tell(job.number, value)
    except optuna.TrialPruned:
        study.tell(job.number, state=TrialState.PRUNED)
    except (_Stopped, KeyboardInterrupt):
        study._storage.set_trial_state_values(job.trial_id, TrialState.WAITING)
    except Exception as error:
        fail(study, job.trial_id, " ".join(str(error).split()))


def _train(job: Job, trial: Trial, stop: Stop) -> float:
    """The mean of the seeds' scores."""
    job.folder.mkdir(parents=True, exist_ok=True)
    job.config.save(job.recipe)
    results: dict[str, float] = trial.user_attrs.get("results", {})
    curves: list[Curve] = []
    for seed in job.space.seeds:
        folder = job.run_dir(seed)
        if str(seed) not in results:
            if not (folder / "summary.json").exists():
                _run(job, seed, trial, curves, stop)
            hopeless = _report(job, trial, [*curves, read_curve(folder, job.space.objective)])
            results = {**results, str(seed): result(folder, job.space.objective)}
            trial.set_user_attr("results", results)
            if hopeless and seed != job.space.seeds[-1]:
                raise optuna.TrialPruned
        curves.append(read_curve(folder, job.space.objective))
    return float(np.mean([results[str(seed)] for seed in job.space.seeds]))


def _report(job: Job, trial: Trial, curves: list[Curve]) -> bool:
    """Reports the new points of the last of `curves`, one for each seed so far; True if the pruner stops the trial."""
    known, reports, latest = trial._cached_frozen_trial.intermediate_values, job.space.reports, curves[-1]
    for k in range(1, reports + 1):
        point, number = job.config.total_timesteps * k / reports, (len(curves) - 1) * reports + k
        if number in known or not latest or not latest[0][0] <= point <= latest[-1][0]:
            continue
        started = [np.array(curve).T for curve in curves if curve and curve[0][0] <= point]
        trial.report(float(np.mean([np.interp(point, steps, values) for steps, values in started])), number)
        if trial.should_prune():
            return True
    return False


def _run(job: Job, seed: int, trial: Trial, earlier: list[Curve], stop: Stop) -> None:
    """Runs or resumes one seed to its summary, and reports its curve meanwhile.

    Raises:
        TrialPruned: the pruner stops the trial.
        ValueError: the run failed.
        _Stopped: `stop` was set.
    """
    folder = job.run_dir(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Timeout, NotImplementedError), FileLock(folder / ".lock", timeout=STOP_S):
        pass  # a run whose sweep was killed may still be writing its last checkpoint
    if any(folder.glob("checkpoints/step_*/manifest.json")):
        arguments = ["--resume", str(folder), "--no-progress"]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        arguments = ["--recipe", str(job.recipe), "--seed", str(seed), "--run-dir", str(folder)]
    command = [sys.executable, str(CHILD), str(os.getpid()), *arguments]
    with open(folder / "output.txt", "a", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None:
                started = time.monotonic()
                if _report(job, trial, [*earlier, read_curve(folder, job.space.objective)]):
                    raise optuna.TrialPruned
                if stop.wait(max(POLL_S, 20 * (time.monotonic() - started))):  # at most a twentieth of a core
                    raise _Stopped
        finally:
            _end(process, stop)
    if process.returncode != 0:
        raise ValueError(f"{folder.name}: {_error_message(folder / 'output.txt', process.returncode)}")
    if not (folder / "summary.json").exists():
        raise ValueError(f"{folder.name}: summary.json is missing")


def _end(process: subprocess.Popen[bytes], stop: Stop) -> None:
    """Ends the process if it still runs, with time to write a checkpoint."""
    if process.poll() is None:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    while process.poll() is None:
        try:
            process.wait(0.2)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            if stop.now or isinstance(error, KeyboardInterrupt) or time.monotonic() > deadline:
                process.kill()


def _error_message(file: Path, status: int) -> str:
    """The error message of a failed run."""
    if status < 0:
        return f"ended by signal {-status}"
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    found = [line for line in lines if line.startswith("error:")] or lines or [f"exit status {status}"]
    return found[-1].removeprefix("error:").strip()


def read_curve(folder: Path, objective: str) -> Curve:
    """The objective as logged by a run so far."""
    column = "rollout/ep_rew_mean" if objective == "return" else objective
    curve: Curve = []
    try:
        text = (folder / "progress.csv").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not written yet
        return curve
    for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):  # the last line may be incomplete
        with contextlib.suppress(KeyError, TypeError, ValueError):  # no value in this row
            step, value = int(float(row[STEP])), float(row[column])
            if np.isfinite(value) and (not curve or step > curve[-1][0]):
                curve.append((step, value))
    return curve


def result(folder: Path, objective: str) -> float:
    """The objective of a finished run: its score on new episodes, or the last value logged of other columns.

    Raises:
        ValueError: the run has no valid value.
    """
    if objective == "return" or objective.startswith("task/"):
        file = folder / "summary.json"
        try:
            summary = json.loads(file.read_text(encoding="utf-8"))
            name = objective.removeprefix("task/")
            value = summary["mean_return"] if objective == "return" else summary["metrics"].get(name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not a valid summary ({error}): remove it to finish the run again") from error
    else:
        logged = read_curve(folder, objective)
        value = logged[-1][1] if logged else None
    if not isinstance(value, (int, float)) or not np.isfinite(value):
        raise ValueError(f"{folder.name}: {objective} is {value}")
    return float(value)
