"""The folder of a run: its name, its lock, its checkpoints, and the command that resumes it."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from filelock import FileLock, Timeout

from agents import CheckpointError, latest_checkpoint
from agents.common.invocation import command_for, quoted
from agents.run.config import Config


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a run's folder, or None."""
    try:
        return latest_checkpoint(folder)
    except (CheckpointError, OSError):
        return None


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run that has got anywhere: one that failed before its first checkpoint has not."""
    begun = any((folder / name).exists() for name in ("checkpoints", "summary.json"))
    return begun and (folder / "config.yaml").exists()


def checkpoint_folder(checkpoint: Path) -> Path:
    """The run's folder of a checkpoint in it."""
    return Path(os.path.normpath(checkpoint / ".." / ".."))


def folder_of(config: Config) -> Path:
    """The run's folder: as configured, else a new name that is valid on every system.

    Raises:
        ValueError: `torchrun --max-restarts` was given without a folder.
    """
    if config.run_dir is not None:
        return config.run_dir
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise ValueError("torchrun --max-restarts was given without --run-dir, where a restart finds the checkpoint")
    parts = [config.env.split("/")[-1], config.memory, config.algo, str(config.seed), time.strftime("%Y%m%d-%H%M%S")]
    name = "-".join(re.sub(r"[^A-Za-z0-9_.+-]+", "-", part)[:60] for part in parts).strip(".-")
    folder, number = Path("runs") / name, 1
    while folder.exists():  # begun in the same second
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def resume_command(folder: Path) -> str:
    """The command that resumes a run."""
    return f"{command_for('train')} --resume {quoted(folder)}"


def describe_saved(folder: Path, run_dir: Path | None = None) -> str:
    """Describes what was saved when training ends early: the newest checkpoint in `folder`, and how to resume."""
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        return "no checkpoint was written yet"
    return f"the last good checkpoint is {checkpoint}; continue with: {resume_command(run_dir or folder)}"


def lock_folder(folder: Path) -> FileLock | None:
    """Locks a run's folder, so that only one process trains it; returns None if the file system has no locks.

    The system releases the lock with the process, also after kill -9.

    Raises:
        ValueError: another process holds the lock.
    """
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another process is training in {folder}: wait for it, stop it, or choose another --run-dir"
        ) from error
    except NotImplementedError:
        return None
    return lock
