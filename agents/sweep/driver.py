"""Runs the trials of a sweep: asks the study for trials, starts them, tells the study their results, and reports."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
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
from agents.sweep.launch import Launcher, Running, make_launcher
from agents.sweep.space import Space
from agents.sweep.space_file import load_space
from agents.sweep.storage import default_storage
from agents.sweep.study import Lease, counted, fail, open_study, put_back, quiet, requeue
from agents.sweep.trial import Job, Outcome

_PICTURES_S = 10.0  # seconds; drawing takes one, too long for every short trial
_HOPELESS = 5  # this many failures in a row without a success: the sweep itself is wrong


def command(config: Command, flags: list[str], console: Console) -> int:
    """`python train.py --sweep`; returns the exit status.

    Raises:
        ValueError: the space file is wrong, the study searches something else, or every trial fails.
    """
    assert config.sweep is not None
    quiet()
    if config.data_dir is not None:  # also for processes that start elsewhere
        config.data_dir = config.data_dir.resolve()
        os.environ["ENGRAM_DATA"] = str(config.data_dir)
    space = check(load_space(config.sweep), config, flags)
    folder = (config.run_dir or Path("runs") / f"sweep-{space.name}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    where = config.storage or default_storage(folder)
    study = open_study(space, config, where)
    launcher = make_launcher(config.launcher, config.jobs, config)
    sweep = Sweep(space, config, study, where, folder, launcher, console)
    try:
        stopped = sweep.run(config.trials)
    finally:
        launcher.close()
        report.write(study, space, config, folder)
    return sweep.summary(stopped)


class Sweep:
    """The main loop of a sweep.

    Args:
        space: what is searched.
        config: what all trials share.
        study: the study that proposes trials.
        where: the study's storage, as opened by trial processes.
        folder: the sweep's folder.
        launcher: starts trials.
        console: prints one line per trial.
    """

    def __init__(
        self,
        space: Space,
        config: Config,
        study: optuna.Study,
        where: str,
        folder: Path,
        launcher: Launcher,
        console: Console,
    ) -> None:
        self.space, self.config, self.study, self.where = space, config, study, where
        self.folder, self.launcher, self.console = folder, launcher, console
        self.running: dict[Any, tuple[Running, Lease]] = {}
        self.wanted = 0
        self._drawn = 0.0
        self._failures = 0
        self._stopping = self._stopped = 0  # how often requested, and how often passed on

    def run(self, trials: int | None = None) -> bool:
        """Runs until enough trials are over; returns True if Ctrl-C ended it before.

        Args:
            trials: number of trials; default: as in the space file, else the whole grid, else 20.
        """
        size = self.space.size() if self.space.sampler["name"] == "grid" else None
        self.wanted = trials or self.space.trials or size or 20
        self.wanted = min(self.wanted, size or self.wanted)
        self.console.print(
            f"[bold]sweep {self.space.name}[/]: {len(self.space.parameters)} parameters, {self.wanted} "
            f"trials of {len(self.space.seeds)} × {self.config.total_timesteps:,} steps, {self.launcher.jobs} at once"
            f" · {self.folder}",
            highlight=False,
            soft_wrap=True,
        )
        try:
            with self._interruptible(), self.console.status("") as status:
                while self._fill():
                    done, _ = wait(self.running, timeout=1.0, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._end(*self.running.pop(future))
                    for running, lease in self.running.values():
                        if not lease.renew():  # this machine slept, and another one has taken the trial
                            self.launcher.stop(running)
                    status.update(self._status())
        except BaseException:
            self._stop_all()  # their leases end with this process
            raise
        return self._stopping > 0

    def _fill(self) -> bool:
        """Starts trials while there is room, or stops them on request; False when none is running."""
        if self._stopping > self._stopped:
            self._stopped = self._stopping
            self._stop_all(now=self._stopping > 1)
            if self._stopping == 1 and self.running:
                self.console.print("stopping: the trials write their checkpoints; press Ctrl-C again to stop at once")
        while not self._stopping and len(self.running) < self.launcher.jobs and self._start():
            pass
        return bool(self.running)

    def _start(self) -> bool:
        """Starts one more trial, if any is left."""
        requeue(self.study)
        trials = counted(self.study)
        queued = any(trial.state == TrialState.WAITING for trial in trials)
        if not queued and len(trials) >= self.wanted:
            return False
        trial = self.study.ask()
        if not trial.params and sum(other.number < trial.number for other in counted(self.study)) >= self.wanted:
            trial.set_user_attr("surplus", True)  # another command took the last one first
            self.study.tell(trial, state=TrialState.FAIL)
            return False
        lease = Lease(self.study, trial._trial_id)
        values = self.space.suggest(trial)
        if not lease.held():
            return True
        job = Job(
            self.space,
            self.space.configure(self.config, values),
            self.where,
            trial._trial_id,
            trial.number,
            str(self.folder),
        )
        running = self.launcher.submit(job)
        self.running[running.future] = running, lease
        return True

    def _end(self, running: Running, lease: Lease) -> None:
        """Records how a trial ended, and reports it."""
        outcome = self.launcher.outcome(running)
        if not lease.held():
            return
        if outcome.state == "stopped":
            lease.give_back()
            return
        if outcome.state == "lost":
            put_back(self.study, lease.trial_id)
        elif outcome.state == "failed":
            fail(self.study, lease.trial_id, outcome.error)
        else:
            with contextlib.suppress(RuntimeError):  # raised by a sampler that has nothing left to try
                state = TrialState.COMPLETE if outcome.state == "complete" else TrialState.PRUNED
                self.study.tell(running.job.number, outcome.value, state=state)
        pictures = time.monotonic() - self._drawn > _PICTURES_S
        report.write(self.study, self.space, self.config, self.folder, pictures)
        self._drawn = time.monotonic() if pictures else self._drawn
        self._say(running.job, outcome)
        self._failures = self._failures + 1 if outcome.state == "failed" else 0
        over = [trial for trial in counted(self.study) if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        if self._failures >= _HOPELESS and not over:
            raise ValueError(f"the first {self._failures} trials failed, the last with: {outcome.error}")

    def _say(self, job: Job, outcome: Outcome) -> None:
        trial = self._trial(job.number)
        words = ", ".join(
            f"{name.split('.')[-1]} {report.number(trial.params[name])}"
            for name in (parameter.name for parameter in self.space.parameters)
            if name in trial.params
        )
        value = "" if trial.value is None else f" {report.number(trial.value)}"
        why = f" · {outcome.error}" if outcome.error else ""
        state = {"complete": "green", "pruned": "dim", "failed": "red"}.get(outcome.state, "yellow")
        line = f"trial {job.number} [{state}]{outcome.state}[/]{value} · {escape(words + why)}"
        self.console.print(line, highlight=False, soft_wrap=True)

    def _trial(self, number: int) -> FrozenTrial:
        return next(trial for trial in self.study.get_trials(deepcopy=False) if trial.number == number)

    def _status(self) -> str:
        """The status line."""
        trials = {trial.number: trial for trial in counted(self.study)}
        over = sum(trial.state.is_finished() for trial in trials.values())
        best = report.ranked(self.study)
        parts = [f"{over} of {self.wanted} trials finished"]
        if best:
            parts.append(f"best {report.number(best[0].value)} (trial {best[0].number})")
        reports = self.space.reports * len(self.space.seeds)
        for running, _ in self.running.values():
            values = trials[running.job.number].intermediate_values
            last = max(values, default=0)
            shown = f" {report.number(values[last])}" if values else ""
            parts.append(f"trial {running.job.number} at {100 * last // reports} %{shown}")
        return " · ".join(parts)

    def summary(self, stopped: bool) -> int:
        """Prints the final report; returns the exit status."""
        running = sum(trial.state == TrialState.RUNNING for trial in counted(self.study))
        best = report.ranked(self.study)
        if best:
            self.console.print(report.table(self.study, self.space))
        if running:
            self.console.print(f"{running} trials still run in other processes of this study", highlight=False)
        if stopped:
            self.console.print("stopped; the same command continues the sweep")
            return 130
        if not best and not running:
            raise ValueError(f"no trial of {self.space.name} was completed; {self.folder}/trials.csv says why")
        if best:
            self.console.print(
                f"train the best:  {command_for('train')} --recipe {quoted(self.folder / 'best.yaml')}\n"
                f"pictures:        {self.folder}/curves.png, history.png, importance.png\n"
                f"all trials:      {self.folder}/trials.csv",
                highlight=False,
                soft_wrap=True,
            )
        return 0

    def _stop_all(self, now: bool = False) -> None:
        for running, _ in self.running.values():
            self.launcher.stop(running, now)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Context manager in which Ctrl-C makes all trials write a checkpoint and stop; a second one stops them at
        once."""

        def interrupt(signum: int, frame: Any) -> None:
            self._stopping += 1  # the loop looks every second

        if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
            yield
            return
        handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
