"""One trial: a run of `train.py` per seed, one after the other, until it is pruned.

A trial reports its curve at the same points as all others. Report `i * reports + k` is the k-th point of the i-th seed;
its value is the mean, over the seeds so far, of their curves at that point. So trials are compared after equal seeds
and steps, and a pruned trial need not run further seeds.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import Trial

from agents.run.config import Config
from agents.run.logs import STEP
from agents.sweep.space import Space
from agents.sweep.storage import open_storage
from agents.sweep.study import alive, make_pruner

TRAIN: str | Path = "agents.run"
"""The module or script that runs a seed."""
POLL_S = 0.5
STOP_S = 120.0
"""Seconds for a run to finish its iteration and write a checkpoint after it is told to stop."""


@dataclass(frozen=True)
class Job:
    """Everything a process needs to run one trial, on any machine."""

    space: Space
    config: Config
    """The trial's configuration, without `seed` and `run_dir`."""
    storage: str
    trial_id: int
    number: int
    folder: str
    """The sweep's folder."""

    @property
    def recipe(self) -> Path:
        """The file for the trial's configuration."""
        return Path(self.folder) / f"trial-{self.number:04d}.yaml"

    def run_dir(self, seed: int) -> Path:
        """The folder of one seed's run."""
        return Path(self.folder) / f"trial-{self.number:04d}-seed-{seed}"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: complete, pruned, failed, or stopped (to be resumed)."""

    state: str
    value: float | None = None
    error: str = ""


class Stop(threading.Event):
    """A flag set from another thread: the trial writes a checkpoint and stops; with `now`, it stops at once."""

    now = False


class _Pruned(Exception):
    pass


class _Stopped(Exception):
    pass


def run_trial(job: Job, stop: Stop) -> Outcome:
    """Runs the seeds without a result, each from its last checkpoint if it has one.

    Ctrl-C in this thread does what `stop` does.
    """
    space = job.space
    study = optuna.load_study(
        study_name=space.name,
        storage=open_storage(job.storage),
        sampler=optuna.samplers.RandomSampler(),  # its values are already drawn
        pruner=make_pruner(space),
    )
    curve = _Curve(Trial(study, job.trial_id), space.reports, job.config.total_timesteps)
    try:
        job.recipe.parent.mkdir(parents=True, exist_ok=True)
        job.config.save(job.recipe)
        results: dict[str, float] = curve.trial.user_attrs.get("results", {})
        for index, seed in enumerate(space.seeds):
            folder = job.run_dir(seed)
            if str(seed) not in results:
                if not (folder / "summary.json").exists():
                    _run(job, seed, index, curve, stop)
                hopeless = curve.report(index, read_curve(folder, space.objective))
                results = {**results, str(seed): result(folder, space.objective)}
                curve.trial.set_user_attr("results", results)
                if hopeless and index + 1 < len(space.seeds):
                    raise _Pruned
            curve.earlier.append(read_curve(folder, space.objective))
        return Outcome("complete", float(np.mean([results[str(seed)] for seed in space.seeds])))
    except _Pruned:
        return Outcome("pruned")
    except (_Stopped, KeyboardInterrupt):
        return Outcome("stopped")
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        return Outcome("failed", error=" ".join(str(error).split()))


class _Curve:
    """A trial's reports, numbered as in the module docstring."""

    def __init__(self, trial: Trial, reports: int, total_timesteps: int) -> None:
        self.trial, self.reports = trial, reports
        self.points = total_timesteps * np.arange(1, reports + 1) / reports
        self.earlier: list[list[tuple[int, float]]] = []  # curves of the seeds before
        self.known = set(trial.study._storage.get_trial(trial._trial_id).intermediate_values)

    def report(self, index: int, curve: list[tuple[int, float]]) -> bool:
        """Reports the new points of seed number `index`; True if the pruner stops the trial."""
        for k, point in enumerate(self.points):
            if not curve or not curve[0][0] <= point <= curve[-1][0]:
                continue
            number = index * self.reports + k + 1
            if number in self.known:
                continue
            curves = [*(c for c in self.earlier if c and c[0][0] <= point), curve]
            value = float(
                np.mean([np.interp(point, [step for step, _ in c], [value for _, value in c]) for c in curves])
            )
            self.trial.report(value, number)
            self.known.add(number)
            if self.trial.should_prune():
                return True
        return False


def _run(job: Job, seed: int, index: int, curve: _Curve, stop: Stop) -> None:
    """Runs or resumes one seed to its summary."""
    folder = job.run_dir(seed)
    _wait_for_orphan(folder / "process.json")
    resume = any(folder.glob("checkpoints/step_*/manifest.json"))
    if not resume:  # there is nothing to resume
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    start = ["--recipe", str(job.recipe), "--seed", str(seed), "--run-dir", str(folder)]
    words = ["--resume", str(folder), "--no-progress"] if resume else start
    command = [sys.executable, str(Path(__file__).with_name("child.py")), str(os.getpid()), str(TRAIN), *words]
    with open(folder / "output.txt", "a", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        (folder / "process.json").write_text(json.dumps([socket.gethostname(), process.pid]), encoding="utf-8")
        try:
            _watch(process, folder, job.space.objective, index, curve, stop)
        finally:
            _end(process, stop)
            (folder / "process.json").unlink(missing_ok=True)
    if process.returncode != 0:
        raise ValueError(f"{folder.name}: {_last_words(folder / 'output.txt', process.returncode)}")
    if not (folder / "summary.json").exists():
        raise ValueError(f"{folder.name}: summary.json is missing")


def _wait_for_orphan(file: Path) -> None:
    """Waits for a run whose sweep was killed, and which may still be writing its last checkpoint."""
    try:
        host, process = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + STOP_S
    while host == socket.gethostname() and alive(process) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _watch(
    process: subprocess.Popen[bytes], folder: Path, objective: str, index: int, curve: _Curve, stop: Stop
) -> None:
    """Reports until the process ends; raises `_Pruned` or `_Stopped` if the trial is to end before."""
    while process.poll() is None:
        started = time.monotonic()
        if curve.report(index, read_curve(folder, objective)):
            raise _Pruned
        if stop.wait(max(POLL_S, 20 * (time.monotonic() - started))):  # reading takes at most a twentieth of a core
            raise _Stopped


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


def _last_words(file: Path, status: int) -> str:
    """The error message of a failed run."""
    if status < 0:
        return f"ended by signal {-status}"
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    found = [line for line in lines if line.startswith("error:")] or lines or [f"exit status {status}"]
    return found[-1].removeprefix("error:").strip()


_COLUMNS = {"return": "rollout/ep_rew_mean"}


def read_curve(folder: Path, objective: str) -> list[tuple[int, float]]:
    """The objective as logged by a run so far: steps and values, in order."""
    column = _COLUMNS.get(objective, objective)
    curve: list[tuple[int, float]] = []
    try:
        text = (folder / "progress.csv").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not yet there
        return curve
    whole = text[: text.rfind("\n") + 1]  # the last line may be incomplete
    for row in csv.DictReader(whole.splitlines()):
        step, value = _number(row.get(STEP)), _number(row.get(column))
        if step is not None and value is not None and (not curve or step > curve[-1][0]):
            curve.append((int(step), value))
    return curve


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:  # no value in this row
        return None
    return number if np.isfinite(number) else None


def result(folder: Path, objective: str) -> float:
    """The objective of a finished run: its score over fresh episodes, or the last value logged of other columns.

    Raises:
        ValueError: it has no valid value.
    """
    kind, _, name = objective.partition("/")
    value: Any = None
    if objective == "return" or kind == "task":
        file = folder / "summary.json"
        try:
            summary = json.loads(file.read_text(encoding="utf-8"))
            value = summary["mean_return"] if objective == "return" else summary["metrics"].get(name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not a valid summary ({error}): remove it to finish the run again") from error
    else:
        logged = read_curve(folder, objective)
        value = logged[-1][1] if logged else None
    if not isinstance(value, (int, float)) or not np.isfinite(value):
        raise ValueError(f"{folder.name}: {objective} is {value}")
    return float(value)
