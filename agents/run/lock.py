"""A lock on a run's folder, so that only one process trains it. The system releases it with the process, also after
kill -9."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


def take(folder: Path) -> FileLock | None:
    """Locks a run's folder until `release` or the end of the process; returns None if the file system has no locks.

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
