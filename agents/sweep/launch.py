"""Trials as tasks of a Ray cluster."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from agents.run.config import Config
from agents.sweep.trial import Job, Stop, run_trial

Run = Callable[[Job, Stop], None]
"""Runs one trial and returns when it has ended, as `run_trial` does in this process."""


def on_ray(config: Config) -> tuple[Run, int]:
    """A function that runs a trial on a Ray cluster, and the number of trials that fit on it.

    The cluster is that of `RAY_ADDRESS`, one started on this machine, or a new local one, which ends with this process.
    A task takes `threads` CPUs, and a GPU if the agents use one. It must be able to reach the study's storage, and
    should reach the sweep's folder.

    Raises:
        ValueError: Ray is not installed, or one trial does not fit on the cluster.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ValueError('--launcher ray needs Ray: python -m pip install "engram-rl[ray]"') from error
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    needed = {"CPU": float(max(config.threads, 1)), **({"GPU": 1.0} if config.device.startswith("cuda") else {})}
    has = ray.cluster_resources()
    fitting = min(int(has.get(name, 0.0) // amount) for name, amount in needed.items())
    if fitting < 1:
        found = ", ".join(f"{has.get(name, 0.0):g} {name}" for name in needed)
        raise ValueError(f"a trial needs {needed}, but the Ray cluster has {found}")
    remote = ray.remote(num_cpus=needed["CPU"], num_gpus=needed.get("GPU", 0.0), max_retries=0)(_task)

    def run(job: Job, stop: Stop) -> None:
        task, signals = remote.remote(job), 0
        while not ray.wait([task], timeout=0.5)[0]:
            if stop.is_set() and signals < 1 + stop.now:
                signals = 1 + stop.now
                ray.cancel(task, force=stop.now)
        ray.get(task)

    return run, fitting


def _task(job: Job) -> None:
    """A trial as a Ray task; Ray cancels it by a `KeyboardInterrupt`."""
    run_trial(job, Stop())
