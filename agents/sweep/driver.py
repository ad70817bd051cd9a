"""Runs the trials of a sweep: asks the study for trials, starts them, and reports how they ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape

from agents.common.invocation import command_for, quoted
from agents.run.config import Command, Config
from agents.sweep import report
from agents.sweep.check import check
from agents.sweep.launch import Run, on_ray
from agents.sweep.space import Space
from agents.sweep.space_file import load_space
from agents.sweep.study import RENEW_S, default_storage, open_study, renew, requeue, requeue_trial, silence_optuna
from agents.sweep.trial import Job, Stop, run_trial

_PICTURES_S = 10.0  # seconds between drawings, which take about one second
_MAX_FAILURES = 5  # failures in a row, without a completed trial, that end the sweep
_COLORS = {TrialState.COMPLETE: "green", TrialState.PRUNED: "dim", TrialState.FAIL: "red"}


def command(config: Command, flags: list[str], console: Console) -> int:
    """`python train.py --sweep`; returns the exit status.

    Raises:
        ValueError: the space file is wrong, the study searches something else, or every trial fails.
    """
    assert config.sweep is not None
    silence_optuna()
    if config.data_dir is not None:  # for processes in other folders too
        config.data_dir = config.data_dir.resolve()
        os.environ["ENGRAM_DATA"] = str(config.data_dir)
    space = check(load_space(config.sweep), config, flags)
    folder = (config.run_dir or Path("runs") / f"sweep-{space.name}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    where = config.storage or default_storage(folder)
    study = open_study(space, config, where)
    run, max_jobs = on_ray(config) if config.launcher == "ray" else (run_trial, 1)
    sweep = Sweep(space, config, study, where, folder, console, run, config.jobs or max_jobs)
    try:
        stopped = sweep.run(config.trials)
    finally:
        report.write(study, space, config, folder)
    return sweep.summary(stopped)


class Sweep:
    """The main loop of a sweep.

    Args:
        space: the search space.
        config: the settings that all trials share.
        study: the study that proposes trials.
        where: the study's storage, as opened by trial processes.
        folder: the sweep's folder.
        console: receives one line per trial.
        run_one: runs a trial, in a thread.
        jobs: number of parallel trials.
    """

    def __init__(
        self,
        space: Space,
        config: Config,
        study: optuna.Study,
        where: str,
        folder: Path,
        console: Console,
        run_one: Run = run_trial,
        jobs: int = 1,
    ) -> None:
        self.space, self.config, self.study, self.where = space, config, study, where
        self.folder, self.console, self.run_one, self.jobs = folder, console, run_one, jobs
        self.running: dict[Future[None], Job] = {}
        self.n_trials = 0
        self.stop = Stop()
        self._drawn = self._renewed = 0.0
        self._failures = 0

    def run(self, trials: int | None = None) -> bool:
        """Runs until enough trials are finished; returns True if Ctrl-C stopped it earlier.

        Args:
            trials: number of trials; default: as in the space file, else the whole grid, else 20.
        """
        size = self.space.size() if self.space.sampler["name"] == "grid" else None
        self.n_trials = trials or self.space.trials or size or 20
        self.n_trials = min(self.n_trials, size or self.n_trials)
        self._print(
            f"[bold]sweep {self.space.name}[/]: {len(self.space.parameters)} parameters, {self.n_trials} trials of "
            f"{len(self.space.seeds)} × {self.config.total_timesteps:,} steps, {self.jobs} at once · {self.folder}"
        )
        with self._interruptible(), self.console.status("") as status, ThreadPoolExecutor(self.jobs) as pool:
            try:
                while self._fill(pool):
                    for future in wait(self.running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                        self._end(future, self.running.pop(future))
                    self._renew_leases()
                    status.update(self._status())
                return self.stop.is_set()
            finally:
                self.stop.set()  # the pool waits for the trials that still run

    def _renew_leases(self) -> None:
        """Renews the leases of the running trials, if the last renewal is `RENEW_S` ago."""
        if time.monotonic() - self._renewed > RENEW_S:
            self._renewed = time.monotonic()
            for job in self.running.values():
                renew(self.study, job.trial_id)

    def _fill(self, pool: ThreadPoolExecutor) -> bool:
        """Starts trials up to `jobs`, while any is left; returns False when no trial is running."""
        while not self.stop.is_set() and len(self.running) < self.jobs:
            job = self.next_job()
            if job is None:
                break
            self.running[pool.submit(self.run_one, job, self.stop)] = job
        return bool(self.running)

    def next_job(self) -> Job | None:
        """One more trial, if any is left: the first of the queue, else a new one."""
        requeue(self.study)
        trials = self.study.get_trials(deepcopy=False)
        if all(trial.state != TrialState.WAITING for trial in trials[: self.n_trials]) and len(trials) >= self.n_trials:
            return None
        trial = self.study.ask()
        if trial.number >= self.n_trials:  # another command took the last trial
            self.study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            return None
        renew(self.study, trial._trial_id)
        config = self.space.configure(self.config, self.space.suggest(trial))
        return Job(self.space, config, self.where, trial._trial_id, trial.number, self.folder)

    def _end(self, future: Future[None], job: Job) -> None:
        """Reports how a trial ended, or returns it to the queue if its process died."""
        trial, lost = self.study._storage.get_trial(job.trial_id), future.exception()
        if lost and trial.state == TrialState.RUNNING and self.stop.is_set():
            self.study._storage.set_trial_state_values(job.trial_id, TrialState.WAITING)
        elif lost and trial.state == TrialState.RUNNING:
            requeue_trial(self.study, job.trial_id)
        if self.stop.is_set() and not trial.state.is_finished():
            return
        pictures = time.monotonic() - self._drawn > _PICTURES_S
        report.write(self.study, self.space, self.config, self.folder, pictures)
        self._drawn = time.monotonic() if pictures else self._drawn
        self._print_trial(trial, lost)
        self._failures = self._failures + 1 if trial.state == TrialState.FAIL else 0
        finished = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        if self._failures >= _MAX_FAILURES and not finished:
            raise ValueError(
                f"the first {self._failures} trials failed, the last with: {trial.user_attrs.get('error')}"
            )

    def _print_trial(self, trial: FrozenTrial, lost: BaseException | None) -> None:
        values = ", ".join(f"{name.split('.')[-1]} {report.number(v)}" for name, v in trial.params.items())
        value = "" if trial.value is None else f" {report.number(trial.value)}"
        error = trial.user_attrs.get("error") or (f"{type(lost).__name__}: {lost}" if lost else "")
        state = "failed" if trial.state == TrialState.FAIL else "lost" if lost else trial.state.name.lower()
        why = " · " * bool(error) + " ".join(error.split())
        self._print(
            f"trial {trial.number} [{_COLORS.get(trial.state, 'yellow')}]{state}[/]{value} · {escape(values + why)}"
        )

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def _status(self) -> str:
        """The status line."""
        trials = self.study.get_trials(deepcopy=False)
        best = report.ranked(self.study)
        parts = [f"{sum(trial.state.is_finished() for trial in trials)} of {self.n_trials} trials finished"]
        if best:
            parts.append(f"best {report.number(best[0].value)} (trial {best[0].number})")
        reports = self.space.reports * len(self.space.seeds)
        for job in self.running.values():
            values = trials[job.number].intermediate_values
            last = max(values, default=0)
            shown = f" {report.number(values[last])}" if values else ""
            parts.append(f"trial {job.number} at {100 * last // reports} %{shown}")
        return " · ".join(parts)

    def summary(self, stopped: bool) -> int:
        """Prints the final report; returns the exit status.

        Raises:
            ValueError: no trial was completed, and none is running.
        """
        running = len(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        best = report.ranked(self.study)
        if best:
            self.console.print(report.table(self.study, self.space))
        if running:
            self._print(f"{running} trials still run in other processes of this study")
        if stopped:
            self._print("stopped; the same command continues the sweep")
            return 130
        if not best and not running:
            raise ValueError(f"no trial of {self.space.name} was completed; {self.folder}/trials.csv says why")
        if best:
            self._print(
                f"train the best:  {command_for('train')} --recipe {quoted(self.folder / 'best.yaml')}\n"
                f"pictures:        {self.folder}/curves.png, history.png, importance.png\n"
                f"all trials:      {self.folder}/trials.csv"
            )
        return 0

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Context manager in which Ctrl-C makes all trials write a checkpoint and stop; a second Ctrl-C stops
        them at once."""

        def interrupt(signum: int, frame: Any) -> None:
            self.stop.now = self.stop.is_set()
            if not self.stop.now:
                self._print("stopping: the trials write their checkpoints; press Ctrl-C again to stop at once")
            self.stop.set()

        with contextlib.ExitStack() as stack:
            with contextlib.suppress(ValueError):  # signals reach the main thread only
                for number in (signal.SIGINT, signal.SIGTERM):
                    stack.callback(signal.signal, number, signal.signal(number, interrupt))
            yield
