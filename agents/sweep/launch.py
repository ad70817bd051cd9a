"""Launchers: trials run as local processes or as tasks of a Ray cluster."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from agents.run.config import Config
from agents.sweep.trial import Job, Outcome, Stop, run_trial


@dataclass
class Running:
    """A running trial."""

    job: Job
    future: Future[Outcome]
    stop: Stop = field(default_factory=Stop)
    task: Any = None


class Launcher:
    """The interface of launchers."""

    jobs: int
    """Number of parallel trials."""

    def submit(self, job: Job) -> Running:
        """Starts a trial."""
        raise NotImplementedError

    def stop(self, running: Running, now: bool = False) -> None:
        """Stops a trial after it has written a checkpoint; with `now`, at once."""
        raise NotImplementedError

    def outcome(self, running: Running) -> Outcome:
        """The result of a finished trial; `lost` if its machine or process died."""
        raise NotImplementedError

    def close(self) -> None:
        """Releases resources; no more trials are started."""
        raise NotImplementedError


class Local(Launcher):
    """Runs trials as local processes, each watched by a thread.

    Args:
        jobs: parallel trials; default: one.
    """

    def __init__(self, jobs: int | None) -> None:
        self.jobs = jobs or 1
        self._pool = ThreadPoolExecutor(self.jobs, thread_name_prefix="trial")

    def submit(self, job: Job) -> Running:
        stop = Stop()
        return Running(job, self._pool.submit(run_trial, job, stop), stop)

    def stop(self, running: Running, now: bool = False) -> None:
        running.stop.now = now
        running.stop.set()

    def outcome(self, running: Running) -> Outcome:
        error = running.future.exception()
        return running.future.result() if error is None else Outcome("failed", error=f"{type(error).__name__}: {error}")

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Ray(Launcher):
    """Runs trials as tasks of a Ray cluster: the one at RAY_ADDRESS, else one running on this machine, else a new local
    one.

    A task takes `threads` CPUs of the cluster, and a GPU if the agents use one. It must be able to reach the study's
    storage, and should reach the sweep's folder.

    Args:
        jobs: parallel trials; default: as many as the cluster has room for.
        config: what all trials share.

    Raises:
        ValueError: Ray is not installed, or the cluster has no room for one trial.
    """

    def __init__(self, jobs: int | None, config: Config) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError('--launcher ray needs Ray: python -m pip install "engram-rl[ray]"') from error
        self._ray = ray
        self._ours = not ray.is_initialized()
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
        wants = {"CPU": float(max(config.threads, 1)), **({"GPU": 1.0} if config.device.startswith("cuda") else {})}
        has = ray.cluster_resources()
        room = min(int(has.get(name, 0.0) // amount) for name, amount in wants.items())
        if room < 1:
            self.close()
            found = ", ".join(f"{has.get(name, 0.0):g} {name}" for name in wants)
            raise ValueError(f"a trial needs {wants}, but the Ray cluster has {found}")
        self.jobs = jobs or room
        options = {"num_cpus": wants["CPU"], "num_gpus": wants.get("GPU", 0.0), "max_retries": 0}
        self._run = ray.remote(**options)(run_task)

    def submit(self, job: Job) -> Running:
        task = self._run.remote(job)
        return Running(job, task.future(), task=task)

    def stop(self, running: Running, now: bool = False) -> None:
        self._ray.cancel(running.task, force=now)

    def outcome(self, running: Running) -> Outcome:
        error = running.future.exception()
        errors = self._ray.exceptions
        if error is None:
            return running.future.result()
        if isinstance(error, errors.TaskCancelledError):
            return Outcome("stopped")
        if isinstance(error, errors.RayTaskError) or not isinstance(error, errors.RayError):
            return Outcome("failed", error=str(error).splitlines()[-1])
        return Outcome("lost", error=type(error).__name__)

    def close(self) -> None:
        if self._ours:
            self._ray.shutdown()


def run_task(job: Job) -> Outcome:
    """A trial as a Ray task; Ray cancels it by a `KeyboardInterrupt`."""
    return run_trial(job, Stop())


def make_launcher(name: str, jobs: int | None, config: Config) -> Launcher:
    """A launcher by name: `local` or `ray`."""
    return Ray(jobs, config) if name == "ray" else Local(jobs)
